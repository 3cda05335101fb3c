"""Ways to choose a subset that are not ours; each is a function of the list and of the caller.

Their callers have a number, and know how many callers there are and what share of the load is
theirs: more than a caller of Ray Serve can know.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

__all__ = ["OURS", "POLICIES", "Policy"]

OURS = "ours"
"""Of the package: nothing is chosen here."""

Policy = Callable[[Sequence[str], int, int, int], Sequence[str]]
"""From all replicas, the caller's number, how many callers there are, and the subset's size."""


def all_to_all(replicas: Sequence[str], caller: int, callers: int, size: int) -> Sequence[str]:
    """Without subsets."""
    return replicas


def aperture(replicas: Sequence[str], caller: int, callers: int, size: int) -> Sequence[str]:
    """Twitter's deterministic aperture: callers and replicas on one ring, evenly spaced.

    Without its weights: whoever an arc touches is in it as a whole.
    """
    count = len(replicas)
    start = caller * count // callers
    return [replicas[(start + i) % count] for i in range(min(size, count))]


def google(replicas: Sequence[str], caller: int, callers: int, size: int) -> Sequence[str]:
    """Google's deterministic subsetting (Site Reliability Engineering, chapter 20)."""
    subsets = max(1, len(replicas) // size)
    round_, place = divmod(caller, subsets)
    shuffled = list(replicas)
    random.Random(round_).shuffle(shuffled)
    return shuffled[place * size : (place + 1) * size]


def at_random(replicas: Sequence[str], caller: int, callers: int, size: int) -> Sequence[str]:
    """Drawn anew whenever the list changes."""
    rng = random.Random(f"{caller} {len(replicas)} {replicas[0]} {replicas[-1]}")
    return rng.sample(replicas, min(size, len(replicas)))


POLICIES: dict[str, Policy | None] = {
    "all to all": all_to_all,
    OURS: None,
    "aperture": aperture,
    "deterministic": google,
    "random": at_random,
}
"""By name."""
