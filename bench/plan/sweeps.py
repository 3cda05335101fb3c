"""What is measured: every sweep, as a table of cases with their targets.

A case's workload, in the runner's words:

    kind                  "unary", "stream", "sync" (`.result()` in a driver's threads), "memory"
    method                of the callee: "echo", "changed" (an echo that returns a new value),
                          "length" (there only), "tokens", "tokens_in_thread"
    value, size           what is sent (`load/payloads.py`), and its bytes; for streams size = items
    in_flight             calls under way at a time, over all callers
    callers, replicas     how many; 1 if not said
    max_ongoing_requests  of the callee; far above `in_flight` if not said
    min_calls             counted calls of a window, at least; 20 if not said
    max_s                 bound of a window all the same; 2 if not said
    ramp                  whether the first quarter of a window's time, and as many calls as are in
                          flight, pass uncounted before it; true if not said
    share                 of the plan's window; 1 if not said, less where no target is at stake
    beside                large calls under way meanwhile, one at a time: their method, value, size
    idle_s                what passes after the last call until memory is looked at again
    rounds                fewer than the plan's, for what takes minutes
    series                which line of the sweep's plots, if it has several
    max_message_bytes     limit of Serve's and our messages: raised from 4 MiB, for all alike

Where a sweep is about its axis, and not about serializers, "pickle" stands for Serve's: it is the
quickest of those that take every value. Ours is there twice wherever it is: over the local lane and
over gRPC. Pure: nothing here imports Ray.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from bench.plan.contenders import (
    BARE_STREAM,
    BARE_UNARY,
    BY_REFERENCE,
    OURS,
    OVER_GRPC,
    ours,
    over_grpc,
    serves,
)
from bench.plan.targets import (
    FOUR_CALLERS,
    SERVES,
    bounded_tail,
    competing_callers,
    first_token,
    lane_latency,
    lane_throughput,
    latency,
    memory_left,
    narrowed,
    tail,
    throughput,
    tokens,
)
from bench.results.run import Case, Flags, Target

__all__ = ["MAX_MESSAGE_BYTES", "all_sweeps", "memory"]

MAX_MESSAGE_BYTES = 512 * 1024 * 1024

ALL_FLAGS: tuple[Flags, ...] = ("default", "throughput")
FLOORS = (BARE_UNARY, BARE_STREAM)
BOTH = (OURS, OVER_GRPC)
FEW = (BY_REFERENCE, *serves("pickle"), *BOTH)
BINARY = (BY_REFERENCE, *serves("cloudpickle", "pickle", "msgpack"), *BOTH)  # orjson has no bytes
TEXT = (BY_REFERENCE, *serves("pickle", "orjson"), *BOTH)
QUICKEST = (BY_REFERENCE, *BOTH)
"""For values with which Serve's gRPC takes a second and more a call; by reference is its best."""

SIZES = {
    "0B": 0,
    "100B": 100,
    "1KB": 1_000,
    "10KB": 10_000,
    "100KB": 100_000,
    "1MB": 1_000_000,
    "10MB": 10_000_000,
    "100MB": 100_000_000,
}
LARGE = ("100KB", "1MB", "10MB", "100MB")


def all_sweeps() -> Iterator[Case]:
    """Every case but those over HTTP. Those that need few processes come first."""
    yield from serializers()
    yield from payloads()
    yield from texts()
    yield from arrays()
    yield from structures()
    yield from beside_large()
    yield from in_flight()
    yield from streams()
    yield from sync_callers()
    yield from saturated()
    yield from callers()
    yield from replicas()


# ------------------------------------------------------------ the sweeps


def serializers() -> Iterator[Case]:
    """Every transport with every serializer, and the floors."""
    everyone = (*SERVES, *ours(), OVER_GRPC, *FLOORS)
    wanted: tuple[tuple[Flags, int, int, float], ...] = (
        ("default", 12, 4, 0.6),
        ("throughput", 20, 6, 0.4),
    )
    for flags, at_least, fraction, of_grpc in wanted:
        what = f"100 B, {flags} flags"
        bare = "100 B against bare grpc.aio"
        one = [latency(f"{what}, 1 in flight", fraction), tail(f"{what}, 1 in flight")]
        one.append(lane_latency(f"{what}, 1 in flight", of_grpc))
        many = [throughput(f"{what}, 100 in flight", at_least), tail(f"{what}, 100 in flight")]
        many.append(lane_throughput(f"{what}, 100 in flight", 1.2))
        if flags == "throughput":
            one.append(latency(f"{bare}, 1 in flight", 1 / 0.8, (BARE_UNARY,)))
            many.append(throughput(f"{bare}, 100 in flight", 5, (BARE_UNARY,)))
        for x, targets in ((1, one), (100, many)):
            yield _case("serializers", flags, x, everyone, targets, in_flight=x)


def payloads() -> Iterator[Case]:
    """Bytes of every size: latency of one call, and throughput of many up to 1 MB."""
    at_one: dict[str, Any] = {
        "100KB": (BINARY, [latency("100 KB, 1 in flight", 4), tail("100 KB, 1 in flight")]),
        "1MB": (
            BINARY,
            [latency("1 MB bytes, 1 in flight", 6, (BY_REFERENCE,)), tail("1 MB, 1 in flight")],
        ),
    }
    at_many: dict[str, Any] = {
        "10KB": (BINARY, [throughput("10 KB, 100 in flight", 7), tail("10 KB, 100 in flight")]),
        "100KB": (BINARY, [throughput("100 KB, 20 in flight", 2.5), tail("100 KB, 20 in flight")]),
    }
    for size in SIZES:
        yield _payload("bytes, 1 in flight", size, *at_one.get(size, (FEW,)), value="bytes")
    for size in SIZES:
        if SIZES[size] <= 1_000_000:
            count = 100 if SIZES[size] <= 10_000 else 20
            who = at_many.get(size, (FEW,))
            series = "bytes, 100 in flight, 20 from 100 KB"
            yield _payload(series, size, *who, value="bytes", in_flight=count)


def texts() -> Iterator[Case]:
    """Values that are not one block of bytes, one call at a time."""
    for kind in ("str", "dict"):
        for size in ("10KB", "100KB"):
            yield _payload(f"{kind}, 1 in flight", size, TEXT, value=kind)


def arrays() -> Iterator[Case]:
    """NumPy arrays: there and back, back as a changed copy, and there only.

    An echo of what came may be answered with the memory that it came in, as any passing-on may;
    the changed copy is new memory at the callee. The object store is the one to beat.
    """
    kinds = (
        ("NumPy echo", "echo", {"10MB": 3, "100MB": 1}),
        ("NumPy changed copy", "changed", {}),
        ("NumPy upload", "length", {"10MB": 3, "100MB": 1.25}),
    )
    for series, method, wanted in kinds:
        for size in LARGE:
            what = f"{_words(size)} {series}"
            targets: list[Target] = []
            if size in wanted:
                targets = [latency(what, wanted[size], (BY_REFERENCE,))]
                targets.append(tail(what, (BY_REFERENCE,)))
            who = QUICKEST if (size, method) == ("100MB", "changed") else FEW
            yield _payload(series, size, who, targets, value="numpy", method=method)


def structures() -> Iterator[Case]:
    """Values with arrays inside, there and back."""
    kinds = (
        ("DataFrame", "dataframe", 2),
        ("dict with an array", "array-dict", 3),
        ("list of 3 KB arrays", "arrays", 1.2),
    )
    for series, value, fraction in kinds:
        for size in LARGE:
            targets = [latency(f"{_words(size)} {series}", fraction, (BY_REFERENCE,))]
            wanted = targets if size == "10MB" else ()
            who = QUICKEST if size == "100MB" else FEW
            yield _payload(series, size, who, wanted, value=value)


def beside_large() -> Iterator[Case]:
    """Lone small calls while the same process echoes 100 MB after 100 MB with the same replica."""
    yield _case(
        "beside",
        "throughput",
        1,
        QUICKEST,
        [bounded_tail("100 B beside 100 MB NumPy echoes", 10)],
        label="100B-beside-numpy-100MB",
        in_flight=1,
        beside={"method": "echo", "value": "numpy", "size": SIZES["100MB"]},
        share=4,
        max_s=4.0,
    )


def memory() -> Iterator[Case]:
    """What 1,000 echoes of 10 MB leave behind a minute later. Takes minutes: only if asked for."""
    yield _case(
        "memory",
        "throughput",
        SIZES["10MB"],
        FEW,
        [memory_left("1,000 echoes of 10 MB, then 60 s idle", 1.05)],
        label="numpy-echo-10MB",
        kind="memory",
        value="numpy",
        size=SIZES["10MB"],
        in_flight=1,
        calls=1000,
        idle_s=60.0,
        rounds=1,
    )


def in_flight() -> Iterator[Case]:
    """From a lone call to a crowd; the largest one takes long, and is there once."""
    for flags in ALL_FLAGS:
        for x in (1, 10, 100, 1000) if flags == "throughput" else (1, 10, 100):
            yield _case("in-flight", flags, x, FEW, in_flight=x)


def streams() -> Iterator[Case]:
    """Streams of 100 tokens, from an async and from a plain generator."""
    for flags in ALL_FLAGS:
        what = f"streams, {flags} flags, 100 in flight"
        at_least = 15 if flags == "throughput" else 10
        targets = [tokens(what, at_least), first_token(what, 3), tail(what)]
        yield _stream("async", flags, 1, FEW)
        yield _stream("async", flags, 100, (*SERVES, *BOTH), targets)
    for x in (1, 10):
        yield _stream("plain", "throughput", x, FEW)


def sync_callers() -> Iterator[Case]:
    """`.result()` in threads of a driver; Serve's handles have none under the throughput flags."""
    what = "sync .result(), 1 in flight"
    targets = [latency(what, 2), tail(what)]
    yield _case("sync", "default", 1, (*SERVES, *BOTH), targets, kind="sync", in_flight=1)
    yield _case("sync", "default", 8, FEW, kind="sync", in_flight=8)
    for x in (1, 8):
        yield _case("sync", "throughput", x, FEW, kind="sync", in_flight=x)


def saturated() -> Iterator[Case]:
    """Far more calls than the replica takes, from one caller, and from four that compete."""
    competing = (f"{serves('pickle')[0]} (4 callers)", FOUR_CALLERS, over_grpc(FOUR_CALLERS))
    for flags in ALL_FLAGS:
        what = f"saturated, {flags} flags"
        targets = [throughput(what, 10), tail(what), competing_callers(what, 0.8)]
        names = (*SERVES, *BOTH, *competing)
        yield _case("saturated", flags, 100, names, targets, in_flight=100, max_ongoing_requests=5)


def callers() -> Iterator[Case]:
    """One callee, several caller replicas that share the load."""
    for x in (1, 2, 4):
        yield _case("callers", "throughput", x, FEW, in_flight=100, callers=x)


def replicas() -> Iterator[Case]:
    """One caller, several callee replicas. All share the machine: this shows the cost of choice."""
    for x in (1, 2, 4, 8):
        yield _case("replicas", "throughput", x, FEW, in_flight=100, replicas=x)


# ------------------------------------------------------------ making cases

AXES = {
    "payload": "payload",
    "memory": "payload",
    "beside": "",
    "callers": "callers",
    "replicas": "replicas",
    "saturated": "",
}
"""What sweeps go over; the others go over calls in flight."""


def _case(
    sweep: str,
    flags: Any,
    x: float,
    contenders: tuple[str, ...],
    targets: Sequence[Target] = (),
    *,
    label: str = "",
    **workload: Any,
) -> Case:
    """A case; its workload is an echo of 100 characters where nothing else is said."""
    usual: dict[str, Any] = {"kind": "unary", "method": "echo", "value": "str", "size": 100}
    window: dict[str, Any] = {} if targets else {"share": 0.5}
    return Case(
        id=f"{sweep}/{flags}/{label or x}",
        sweep=sweep,
        flags=flags,
        axis=AXES.get(sweep, "in flight"),
        x=x,
        workload={**usual, **window, **workload, "max_message_bytes": MAX_MESSAGE_BYTES},
        contenders=contenders,
        targets=narrowed(targets, contenders),
    )


def _words(size: str) -> str:
    """A key of SIZES as titles have it: "10 MB"."""
    return f"{size[:-2]} {size[-2:]}"


def _payload(
    series: str,
    size: str,
    contenders: tuple[str, ...],
    targets: Sequence[Target] = (),
    **workload: Any,
) -> Case:
    """A place of the payload sweep; few calls are counted of values that take long."""
    load = {"series": series, "size": SIZES[size], "in_flight": 1, **workload}
    if SIZES[size] >= 10_000_000:
        # One at a time, and each as long as a window: there is nothing to get steady.
        min_calls = 1 if SIZES[size] >= 100_000_000 else 5
        load |= {"min_calls": min_calls, "max_s": 5.0, "ramp": False}
    label = f"{load['value']}-{load.get('method', 'echo')}-{size}-{load['in_flight']}"
    return _case("payload", "throughput", SIZES[size], contenders, targets, label=label, **load)


def _stream(
    series: str,
    flags: Flags,
    x: int,
    contenders: tuple[str, ...],
    targets: Sequence[Target] = (),
) -> Case:
    """A window counts whole waves of streams: those that start together go on together."""
    load: dict[str, Any] = {"kind": "stream", "size": 100, "in_flight": x, "ramp": False}
    load["method"] = "tokens" if series == "async" else "tokens_in_thread"
    load |= {"min_calls": max(5, x), "max_s": 1.5}
    load["series"] = f"{series} generator"
    return _case("streams", flags, x, contenders, targets, label=f"{series}-{x}", **load)
