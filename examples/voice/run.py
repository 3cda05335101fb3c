"""`make voice`: speak into a chain of three deployments, and listen to what comes out.

The exit status is not 0 if what comes out is not the translation. Ray and Serve run on this machine
only, under a cluster of their own, and are shut down whatever happens.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray import serve
from rich.console import Console
from rich.table import Table

from . import app, tones

SENTENCE = "good morning the train to cologne leaves at ten"
CHUNK_S = 0.02
NOISE = 0.3

console = Console(highlight=False)


async def microphone(path: Path, started_s: list[float]) -> AsyncIterator[bytes]:
    """The file as a microphone would give it: a chunk each `CHUNK_S` seconds, and no sooner."""
    begin_s = time.monotonic()
    started_s.append(time.time())
    for number, chunk in enumerate(tones.read_chunks(path, CHUNK_S)):
        await asyncio.sleep(begin_s + number * CHUNK_S - time.monotonic())
        yield chunk


async def interpret(handles: list[Any], path: Path) -> tuple[bytes, list[float]]:
    """What is heard at the end of the chain; and when speech began and the first of it was heard,
    in seconds since the epoch."""
    recogniser, translator, synthesiser = (handle.options(stream=True) for handle in handles)
    times_s: list[float] = []
    words = recogniser.remote(microphone(path, times_s))
    german = translator.remote(words)  # a response generator is an argument like any other
    heard = b""
    async for chunk in synthesiser.remote(german):
        if not heard:
            times_s.append(time.time())
        heard += chunk
    return heard, times_s


def main() -> int:
    """Run the example; return the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "english.wav")
        tones.write_wav(path, tones.speak(SENTENCE + " "), NOISE)
        try:
            with console.status("starting Ray and Serve, deploying the applications ..."):
                handles = _deploy()
            with console.status("speaking ..."):
                # Twice: the first time, sessions are opened.
                for _ in range(2):
                    heard, times_s = asyncio.run(interpret(handles, path))
                    firsts = [handle.first.remote().result(timeout_s=10) for handle in handles]
        finally:
            with console.status("shutting down ..."):
                ray.shutdown()  # the cluster is ours alone: Serve and its replicas go with it
    said = tones.Listener().hear(heard).strip()
    expected = " ".join(app.DICTIONARY.get(word, word) for word in SENTENCE.split())
    _report(said, times_s, firsts)
    if said != expected:
        console.print(f"expected: {expected}", style="red")
        return 1
    return 0


def _deploy() -> list[Any]:
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(proxy_location="Disabled")
    return app.deploy()


def _report(said: str, times_s: list[float], firsts: list[app.FirstItems]) -> None:
    began_s, heard_s = times_s
    console.print(f"spoken: {SENTENCE}  ({len(SENTENCE) * tones.LETTER_S:.1f} s of audio)")
    console.print(f"heard:  {said}\n")
    table = Table(title="First items, in ms", title_justify="left")
    for heading in ("hop", "got its first", "gave its first", "on the way to it"):
        table.add_column(heading, justify="left" if heading == "hop" else "right")
    before_s = began_s
    for hop, first in zip(app.HOPS, firsts, strict=True):
        got_ms, gave_ms = ((at_s - began_s) * 1000 for at_s in (first.got_s, first.gave_s))
        way_ms = (first.got_s - before_s) * 1000
        table.add_row(hop.name, f"{got_ms:.1f}", f"{gave_ms:.1f}", f"{way_ms:.1f}")
        before_s = first.gave_s
    at_ms, way_ms = (heard_s - began_s) * 1000, (heard_s - before_s) * 1000
    table.add_row("listener", f"{at_ms:.1f}", "", f"{way_ms:.1f}")
    console.print(table)
    console.print(
        "Times count from the moment the microphone was switched on. A word is known when its last "
        "letter was spoken.",
        style="dim",
    )


if __name__ == "__main__":
    sys.exit(main())
