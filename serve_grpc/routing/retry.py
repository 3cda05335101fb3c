"""When to try again: the pause when every replica is full, and how many calls may be repeated."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Backoff", "RetryBudget"]


@dataclass(frozen=True, slots=True)
class Backoff:
    """Ray Serve's `RAY_SERVE_ROUTER_RETRY_*`: exponential, with a ceiling.

    Attributes:
        initial_s: First pause, in seconds.
        multiplier: Factor from one pause to the next.
        max_s: Longest pause, in seconds.
    """

    initial_s: float = 0.025
    multiplier: float = 2
    max_s: float = 0.5

    def delay_s(self, attempt: int) -> float:
        """The pause after `attempt` earlier ones, in seconds."""
        # A call may wait for long: after a thousand doublings a float has no room for the result.
        try:
            return min(self.initial_s * self.multiplier**attempt, self.max_s)
        except OverflowError:
            return self.max_s


class RetryBudget:
    """At most `ratio` repeats per call plus `per_second`, so failures do not multiply the load.

    Args:
        now_s: Any monotonic time, in seconds.
    """

    def __init__(self, now_s: float, *, ratio: float = 0.2, per_second: float = 10.0) -> None:
        self._ratio = ratio
        self._per_second = per_second
        self._tokens = per_second
        self._calls = 0  # since the tokens were last brought up to date
        # A quiet hour does not save up for a storm.
        self._max_tokens = 10 * per_second
        self._updated_s = now_s

    def on_call(self) -> None:
        """Count one new call."""
        self._calls += 1

    def try_spend(self, now_s: float) -> bool:
        """Take one repeat if the budget has it."""
        # Earned only when somebody asks: calls are many, and repeats few.
        elapsed_s = max(0.0, now_s - self._updated_s)
        self._updated_s = now_s
        earned = elapsed_s * self._per_second + self._calls * self._ratio
        self._calls = 0
        self._tokens = min(self._max_tokens, self._tokens + earned)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
