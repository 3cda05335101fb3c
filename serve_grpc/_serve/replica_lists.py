"""The lists of replicas that one of Serve's routers gets: what changed from one to the next.

Each list comes whole. It is compared with the one before in one pass over its hashes, and all else
is done for what changed only: facts, Serve's pruning of its counts, and the news for our routers.
On the router's loop.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from serve_grpc._serve.deferred_lists import deferred_lists
from serve_grpc._serve.replica_facts import ReplicaNews, facts_of
from serve_grpc.mailbox import mailbox_of
from serve_grpc.pacing import Paced
from serve_grpc.routing.peer import ReplicaFacts

__all__ = ["Follower", "ReplicaLists", "lists_of"]

OUR_LISTS = "_serve_grpc_lists"
"""Attribute of Serve's router: what we keep of it lives as long as it does."""
COMPARED_AT_ONCE, READ_AT_ONCE = 256, 32
"""Replicas of a list that are compared, or whose facts are read, before the clock is looked at: a
fifth of a millisecond. A list that is not longer is taken in the turn in which it comes."""


@dataclass(frozen=True)
class Follower:
    """Who is told of the lists.

    Attributes:
        on_news: Told of each new list, and of each new configuration.
        on_configuration: Called before that when it is the configuration that has come.
        tell_counts: Has Serve told what is still to be counted, for it looks at its counts now.
    """

    on_news: Callable[[ReplicaNews], None]
    on_configuration: Callable[[], None]
    tell_counts: Callable[[], None]


def lists_of(router: Any) -> ReplicaLists:
    """Those of an `AsyncioRouter`: it has one of these, whoever asks."""
    known = vars(router)
    lists: ReplicaLists | None = known.get(OUR_LISTS)
    if lists is None:
        lists = known[OUR_LISTS] = ReplicaLists(router)
    return lists


class ReplicaLists:
    """Of one router of Serve.

    Attributes:
        ids: Serve's id of each replica by its unique one: of those that are listed, and of those
            that left while Serve counts requests on them.
    """

    def __init__(self, router: Any) -> None:
        self._router = router
        self._metrics = router._metrics_manager
        self._followers: list[Follower] = []
        self._listed: dict[str, int] = {}  # hashes
        self._newest: list[Any] = []
        self._facts: dict[str, ReplicaFacts] = {}
        self._leaving: set[str] = set()
        self._has_list = False
        self.ids: dict[str, Any] = {}
        # Calls on replicas that left, sent before our router had heard of it. They may come back,
        # and the end of a call must not be counted without its beginning.
        self._uncounted: dict[str, int] = {}
        self._work = Paced(mailbox_of(router._event_loop), "tell of replicas")
        self._first = self._known()
        self._deferred = deferred_lists(router)
        self._hook()

    def __repr__(self) -> str:
        return f"<ReplicaLists: {len(self._listed)} listed, {len(self._leaving)} leaving>"

    def follow(self, follower: Follower) -> None:
        """Tell it of the replicas, now if they are known, and of each list from now on."""
        self._followers.append(follower)
        first, self._first = self._first, None
        if first is not None:
            self._on_list(first)
        elif self._has_list:
            self._work.run(self._tell_all(follower))

    def count(self, changes: Mapping[str, int]) -> None:
        """Have Serve count so many more, or fewer, requests on each replica, by its unique id."""
        # Serve's own calls change the same numbers, from other threads; and the dict is another
        # one after many updates (`_prune`), so it is looked up every time.
        with self._metrics._queries_lock:
            counted = self._metrics.num_requests_sent_to_replicas
            for key in changes:
                change = changes[key] + self._uncounted.pop(key, 0)
                if change and key in self.ids:
                    counted[self.ids[key]] += change
                elif change:
                    self._uncounted[key] = change

    def _known(self) -> list[Any] | None:
        # Until there is a configuration, and so a request router, `AsyncioRouter` keeps the list.
        request_router = self._router._request_router
        if request_router is not None:
            return [replica._replica_info for replica in request_router.curr_replicas.values()]
        running: list[Any] | None = self._router._running_replicas
        return running

    def _hook(self) -> None:
        # Serve's router hands every update of its long poll to these two methods of its metrics
        # manager (Ray 2.60: `update_deployment_targets`, `update_deployment_config` of
        # `AsyncioRouter`), after it has used it itself. There is no public way to be told.
        update_config = self._metrics.update_deployment_config

        def update_config_and_tell(config: Any, curr_num_replicas: int) -> None:
            # Serve's request router may not have taken the newest list.
            count = len(self._newest) if self._has_list else curr_num_replicas
            update_config(config, curr_num_replicas=count)
            if self._deferred is not None:
                self._deferred.follow()
            for follower in self._followers:
                follower.on_configuration()
            self._work.run(self._tell({}, []))

        self._metrics._update_running_replicas = self._on_list
        self._metrics.update_deployment_config = update_config_and_tell

    # ------------------------------------------------------------ a new list

    def _on_list(self, infos: list[Any]) -> None:
        if self._deferred is not None:
            self._deferred.on_list(infos)
        old, self._newest, self._has_list = self._newest, infos, True
        self._work.run(self._take(infos, old))

    def _take(self, infos: list[Any], old: list[Any]) -> Iterator[None]:
        before, listed, changed = self._listed, {}, {}
        for start in range(0, len(infos), COMPARED_AT_ONCE):
            if start:
                yield
            for info in infos[start : start + COMPARED_AT_ONCE]:
                key = info.replica_id.unique_id
                # The controller makes it from nearly all fields, and the info keeps it.
                listed[key] = value = hash(info)
                if before.get(key) != value:
                    changed[key] = info
        gone = [key for key in before if key not in listed]
        self._listed = listed
        self.ids.update((key, info.replica_id) for key, info in changed.items())
        self._prune(gone)
        yield from self._tell(changed, gone)
        # To free as many objects takes as long as to look at them.
        leftover = [*old]  # the list itself may be another router's as well
        del old
        while len(leftover) > COMPARED_AT_ONCE:
            yield
            del leftover[-COMPARED_AT_ONCE:]

    def _prune(self, gone: list[str]) -> None:
        """As Serve's own: drop the counts of those that left and run nothing any more."""
        for follower in self._followers:
            follower.tell_counts()
        listed = self._listed
        with self._metrics._queries_lock:
            counted = self._metrics.num_requests_sent_to_replicas
            over = [key for key, n in counted.items() if not n and key.unique_id not in listed]
            if over:
                # Another dict, as Serve makes one: others may be reading this one.
                counted = defaultdict(int, counted)
                for key in over:
                    del counted[key]
                self._metrics.num_requests_sent_to_replicas = counted
        left = {key for key in self._leaving if key not in listed}.union(gone)
        self._leaving = {key for key in left if self.ids[key] in counted}
        for key in left - self._leaving:
            del self.ids[key]

    # ------------------------------------------------------------ news

    def _tell(self, changed: dict[str, Any], gone: list[str]) -> Iterator[None]:
        news: list[ReplicaFacts] = []
        for number, (key, info) in enumerate(changed.items()):
            if number and number % READ_AT_ONCE == 0:
                yield
            facts = facts_of(info)
            # The hash is also of what is no fact of ours, as the statistics for Serve's routers.
            if self._facts.get(key) != facts:
                news.append(facts)
        self._facts.update((facts.replica_id, facts) for facts in news)
        left = tuple(key for key in gone if self._facts.pop(key, None) is not None)
        for follower in tuple(self._followers):
            follower.on_news(ReplicaNews(tuple(news), left))

    def _tell_all(self, follower: Follower) -> Iterator[None]:
        follower.on_news(ReplicaNews(tuple(self._facts.values())))
        yield from ()
