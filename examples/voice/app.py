"""The application: three deployments, of which each takes a stream and gives a stream.

Nothing here waits for the whole of anything. The translator is at the first word while the speaker
still talks, and a slow listener slows the microphone down, through all three.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import serve_grpc
from serve_grpc import RequestStream

from .tones import Listener, speak

__all__ = ["DICTIONARY", "HOPS", "FirstItems", "deploy"]

DICTIONARY = {
    "good": "guten",
    "morning": "morgen",
    "the": "der",
    "train": "zug",
    "to": "nach",
    "cologne": "köln",
    "leaves": "fährt",
    "at": "um",
    "ten": "zehn",
}


class FirstItems:
    """When a hop got its first item, and gave its first; seconds since the epoch, of this node."""

    def __init__(self) -> None:
        self.got_s = self.gave_s = 0.0

    def got(self) -> None:
        """An item came in."""
        self.got_s = self.got_s or time.time()

    def gave(self) -> None:
        """An item is about to go out."""
        self.gave_s = self.gave_s or time.time()


class Hop:
    """What the three have in common."""

    def __init__(self) -> None:
        self.first_items = FirstItems()

    def first(self) -> FirstItems:
        """When the first items of the last stream came and went."""
        first, self.first_items = self.first_items, FirstItems()
        return first


@serve_grpc.deployment(ray_actor_options={"num_cpus": 0.1})
class Recogniser(Hop):
    """Audio -> words. `async def`, so `audio` is an async iterator."""

    async def __call__(self, audio: RequestStream[bytes]) -> AsyncIterator[str]:
        listener, word = Listener(), ""
        async for chunk in audio:
            self.first_items.got()
            for letter in listener.hear(chunk):
                if letter != " ":
                    word += letter
                elif word:
                    self.first_items.gave()
                    yield word
                    word = ""
        if word:
            yield word


@serve_grpc.deployment(ray_actor_options={"num_cpus": 0.1})
class Translator(Hop):
    """English words -> German words."""

    async def __call__(self, words: RequestStream[str]) -> AsyncIterator[str]:
        async for word in words:
            self.first_items.got()
            self.first_items.gave()
            yield DICTIONARY.get(word, word)


@serve_grpc.deployment(ray_actor_options={"num_cpus": 0.1})
class Synthesiser(Hop):
    """Words -> audio. `def`, so it runs in a thread, and `words` is an iterator that blocks it."""

    def __call__(self, words: Iterator[str]) -> Iterator[bytes]:
        for word in words:
            self.first_items.got()
            samples = speak(word + " ")
            self.first_items.gave()
            yield samples


HOPS = Recogniser, Translator, Synthesiser


def deploy() -> list[Any]:
    """Run each as an application of its own; returns their handles, in order."""
    return [
        serve_grpc.run(hop.bind(), name=hop.name.lower(), route_prefix=None).options(
            _by_reference=False
        )
        for hop in HOPS
    ]
