"""Whether two sets of rounds differ by more than noise. Pure arithmetic.

The spread of rounds is taken from their median absolute deviation (MAD), so one round that met a
slow spell does not hide a change, and does not make one either.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["RULE", "Change", "compare", "usual_error"]

LEAST = 0.10
FEW = 3
LEAST_WITH_FEW = 0.40
ERRORS = 4.0  # a thousand numbers are compared: three would find changes where there are none
MAD_TO_SIGMA = 1.4826  # for a normal distribution
MEDIAN_TO_MEAN = 1.2533  # standard error of a median over that of a mean, likewise

RULE = (
    f"A change counts if the medians differ by more than {LEAST:.0%} and by more than "
    f"{ERRORS:g} standard errors of their difference, and if each run's median lies outside the "
    "other run's rounds. The error is estimated from the rounds' median absolute deviation; where "
    "that is less than usual for the metric in these runs, the usual one is taken. Where a run has "
    f"fewer than {FEW} rounds its spread is unknown, and {LEAST_WITH_FEW:.0%} is needed."
)


@dataclass(frozen=True)
class Change:
    """Two sets of rounds.

    Attributes:
        old, new: Their medians.
        relative: `new / old - 1`.
        needed: Size of `relative` from which on it counts.
        is_beyond_noise: Whether it counts.
    """

    old: float
    new: float
    relative: float
    needed: float
    is_beyond_noise: bool


def compare(old: Sequence[float], new: Sequence[float], usual: float = 0.0) -> Change | None:
    """Compare the rounds of two runs by `RULE`; None if there is nothing to compare.

    Args:
        usual: What `usual_error` says of the metric, as a share of the old median.
    """
    if not old or not new or statistics.median(old) == 0:
        return None
    before, after = statistics.median(old), statistics.median(new)
    relative = after / before - 1
    error = _relative_error(old, new)
    if error is None:
        is_beyond = abs(relative) > LEAST_WITH_FEW
        return Change(before, after, relative, LEAST_WITH_FEW, is_beyond)
    needed = max(LEAST, ERRORS * max(error, usual))
    is_beyond = (
        abs(relative) > needed
        and not min(new) <= before <= max(new)
        and not min(old) <= after <= max(old)
    )
    return Change(before, after, relative, needed, is_beyond)


def usual_error(pairs: Iterable[tuple[Sequence[float], Sequence[float]]]) -> float:
    """The median of the standard errors over many numbers of one metric; 0 if none is known.

    A few rounds may lie close together by luck; those of all cases together do not.
    """
    errors = [error for pair in pairs if (error := _relative_error(*pair)) is not None]
    return statistics.median(errors) if errors else 0.0


def _relative_error(old: Sequence[float], new: Sequence[float]) -> float | None:
    """Standard error of the difference of the medians, as a share of the old one."""
    if min(len(old), len(new)) < FEW or statistics.median(old) == 0:
        return None
    return math.hypot(_error(old), _error(new)) / abs(statistics.median(old))


def _error(rounds: Sequence[float]) -> float:
    """Standard error of their median."""
    middle = statistics.median(rounds)
    deviation = statistics.median(abs(value - middle) for value in rounds)
    return MEDIAN_TO_MEAN * MAD_TO_SIGMA * deviation / math.sqrt(len(rounds))
