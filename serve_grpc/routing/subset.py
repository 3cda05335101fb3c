"""To which replicas of a large fleet a caller keeps sessions: the first few in an order of its own.

Callers do not know of each other, so each orders the replicas by a hash of its own random id and
theirs (rendezvous hashing), preferred ones first. Its subset is the beginning of that order. So
each replica is in about as many subsets as any other, and one that comes or goes moves one place
in the subsets that it is in, and none in the others. `Size` says how long the beginning is.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from hashlib import blake2b
from itertools import islice

__all__ = ["SHARE", "Shift", "Size", "Subset"]

SHARE = 8
"""A caller's own calls take at most one slot in so many of its subset, where that is up to it: its
load is spread as evenly as if it had sessions to all, but for an eighth. All subsets together are
then at most `least` for each caller, and so many for each replica that is busy."""
WEIGHT = 1 / 8
"""Of the newest look in the mean number of calls in flight."""
SLACK = 1.25
"""A subset that is less than so many times too large stays as it is: each change costs sessions."""
SHRINK = 0.75
"""What is left of one that is larger, until the next look."""

Shift = tuple[list[str], list[str]]
"""Ids of the replicas that came into a subset, and of those that left it."""
_Key = tuple[int, int, str]


class Subset:
    """The first `size` of the replicas, by rank, and within a rank in this caller's order.

    Args:
        caller: Random bytes of the caller, at most 64.
        size: How many are in it, of those that there are.
    """

    def __init__(self, caller: bytes, size: int) -> None:
        self._caller = caller
        self._size = size
        self._order: list[_Key] = []
        self._keys: dict[str, _Key] = {}

    def __len__(self) -> int:
        return min(self._size, len(self._order))

    def __repr__(self) -> str:
        return f"<Subset of {len(self)} of {len(self._order)}>"

    def __contains__(self, replica_id: object) -> bool:
        key = self._keys.get(replica_id)  # type: ignore[call-overload]
        # The last one that is in it: whoever does not come after it is in it, too.
        return key is not None and len(self) > 0 and key <= self._order[len(self) - 1]

    @property
    def outside(self) -> int:
        """How many replicas are not in it."""
        return len(self._order) - len(self)

    def members(self) -> list[str]:
        """Those that are in it, the first one first."""
        return [key[2] for key in islice(self._order, self._size)]

    def first_of(self, replica_ids: Iterable[str], count: int) -> list[str]:
        """The first `count` of these replicas, in or out."""
        return [key[2] for key in sorted(self._keys[one] for one in replica_ids)[:count]]

    # ------------------------------------------------------------ changes

    def update(self, ranks: dict[str, int], gone: Iterable[str]) -> Shift:
        """Replicas come and go; one that is known already stays where it is.

        Args:
            ranks: Of those that come, by id; the lowest is preferred most.
            gone: Ids of those that go.
        """
        new = {one: rank for one, rank in ranks.items() if one not in self._keys}
        old = [self._keys.pop(one) for one in gone if one in self._keys]
        for one, rank in new.items():
            self._keys[one] = self._key(rank, one)
        # A few are put in their places; of many it is quicker to sort them all.
        if (len(new) + len(old)) * 8 > len(self._order):
            return self._rebuild()
        shifts = [self._remove(key) for key in old] + [self._insert(self._keys[n]) for n in new]
        return _sum(shifts)

    def _key(self, rank: int, replica_id: str) -> _Key:
        digest = blake2b(replica_id.encode(), digest_size=8, key=self._caller).digest()
        return rank, int.from_bytes(digest, "big"), replica_id

    def _rebuild(self) -> Shift:
        before = self.members()
        self._order = sorted(self._keys.values())
        return _difference(before, self.members())

    def _insert(self, key: _Key) -> Shift:
        is_full = len(self) == self._size
        insort(self._order, key)
        if is_full and (self._size == 0 or key > self._order[self._size - 1]):
            return [], []
        return [key[2]], [self._order[self._size][2]] if is_full else []

    def _remove(self, key: _Key) -> Shift:
        place = bisect_left(self._order, key)
        del self._order[place]
        if place >= self._size:
            return [], []
        next_ones = self._order[self._size - 1 : self._size]
        return [one[2] for one in next_ones], [key[2]]

    def resize(self, size: int) -> Shift:
        """Make it larger or smaller."""
        before, self._size = len(self), size
        came = self._order[before : len(self)]
        left = self._order[len(self) : before]
        return [key[2] for key in came], [key[2] for key in left]


def _sum(shifts: list[Shift]) -> Shift:
    """What several shifts come to: who came and left again did neither."""
    net: dict[str, int] = {}
    for came, left in shifts:
        for one in came:
            net[one] = net.get(one, 0) + 1
        for one in left:
            net[one] = net.get(one, 0) - 1
    return [one for one, n in net.items() if n > 0], [one for one, n in net.items() if n < 0]


def _difference(before: list[str], after: list[str]) -> Shift:
    was, is_now = set(before), set(after)
    return [one for one in after if one not in was], [one for one in before if one not in is_now]


class Size:
    """How many replicas a caller needs, by the calls that it has in flight.

    Args:
        least: Of an idle caller. With 0 nobody is left out.

    Attributes:
        wanted: How many it needs now.
    """

    def __init__(self, least: int) -> None:
        self.least = least
        self._mean = 0.0
        self._most = 0.0
        self._unusable = 0
        self.wanted = least
        self._has_looked = False

    def __repr__(self) -> str:
        return f"<Size {self.wanted}, for the load of {self._mean:.2f} replicas>"

    def look(self, in_flight: int, slots: float, unusable: int) -> None:
        """Take note of the load; after so many calls as there are replicas in the subset, say.

        Args:
            in_flight: Calls of this caller on replicas.
            slots: How many a replica runs at once, on average.
            unusable: Replicas of the subset that take no calls: each needs one in its place.
        """
        self._has_looked = True
        self._mean += (in_flight / max(1.0, slots) - self._mean) * WEIGHT
        self._most = max(self._most, self._mean)
        self._unusable = unusable
        self.wanted = self._for(self._mean)

    def _for(self, load: float) -> int:
        return max(self.least, int(SHARE * load)) + self._unusable

    def after_a_while(self, size: int, in_flight: int, slots: float, unusable: int) -> int:
        """How many of `size` replicas to keep; asked every few seconds. Arguments as of `look`."""
        if not self._has_looked:  # hardly any calls: what was before is no measure
            self._mean = self._most = in_flight / max(1.0, slots)
        self._unusable = unusable
        needed = self._for(self._most)
        self.wanted = self._for(self._mean)
        self._most, self._has_looked = self._mean, False
        if size <= needed * SLACK and needed > self.least + unusable:
            return size
        return min(size, max(needed, int(size * SHRINK)))
