"""The benchmark's load generator and its runner, without Ray."""

from __future__ import annotations

import asyncio
import mmap
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from bench.load.closed_loop import Recorder, run_in_loop, run_in_threads
from bench.load.window import Counted, Window
from bench.on_serve import memory
from bench.on_serve.memory import memory_mib, watched_calls
from bench.plan.contenders import OURS, OVER_GRPC
from bench.plan.plans import Plan, full_plan
from bench.results.run import CaseResult, Sample
from bench.workers import runner
from bench.workers.groups import Group

TICK_S = 0.002


def load(call, window: Window) -> Counted:
    return asyncio.run(run_in_loop(call, window, [os.getpid()]))


async def tick(_recorder: Recorder) -> None:
    await asyncio.sleep(TICK_S)


def test_a_closed_loop_keeps_that_many_calls_in_flight() -> None:
    running = most = 0

    async def call(_recorder: Recorder) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(TICK_S)
        running -= 1

    counted = load(call, Window(7, seconds=0.05, ramp_s=0.01, ramp_calls=7))
    assert most == 7
    assert running == 0
    assert counted.seconds >= 0.05
    assert len(counted.latencies_s) >= 20
    assert min(counted.latencies_s) >= TICK_S


def test_the_ramp_is_not_counted() -> None:
    calls = 0

    async def slow_at_first(_recorder: Recorder) -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.1 if calls <= 3 else TICK_S)

    counted = load(slow_at_first, Window(3, seconds=0.05, ramp_s=0.01, ramp_calls=3))
    assert max(counted.latencies_s) < 0.1


def test_without_a_ramp_exactly_the_wanted_calls_are_made() -> None:
    made = 0

    async def call(_recorder: Recorder) -> None:
        nonlocal made
        made += 1
        await asyncio.sleep(0.03)

    counted = load(call, Window(1, seconds=0.01, min_calls=2))
    assert len(counted.latencies_s) == made == 2
    assert counted.seconds >= sum(counted.latencies_s)


def test_a_window_ends_even_if_too_few_calls_do() -> None:
    async def hang(_recorder: Recorder) -> None:
        await asyncio.Event().wait()

    counted = load(hang, Window(2, seconds=0.01, max_s=0.05))
    assert counted.latencies_s == []


def test_a_wrong_answer_ends_the_window_at_once() -> None:
    async def call(_recorder: Recorder) -> None:
        raise ValueError("wrong answer")

    begin = time.monotonic()
    with pytest.raises(ValueError, match="wrong answer"):
        load(call, Window(3, seconds=20))
    assert time.monotonic() - begin < 5


def test_items_are_counted_inside_the_window_only() -> None:
    async def stream(recorder: Recorder) -> None:
        sent = time.perf_counter()
        await asyncio.sleep(TICK_S)
        recorder.first_items_s.append(time.perf_counter() - sent)
        recorder.items += 10

    counted = load(stream, Window(1, seconds=0.05, ramp_s=0.02))
    assert counted.items == 10 * len(counted.first_items_s)
    assert abs(len(counted.latencies_s) - len(counted.first_items_s)) <= 1


def test_callers_start_together() -> None:
    start_at = time.monotonic() + 0.1
    first_at = None

    async def call(_recorder: Recorder) -> None:
        nonlocal first_at
        first_at = first_at or time.monotonic()
        await asyncio.sleep(TICK_S)

    load(call, Window(1, seconds=0.01, min_calls=1, start_at=start_at))
    assert first_at is not None
    assert first_at >= start_at


def test_threads_make_the_same_load() -> None:
    counted = run_in_threads(
        lambda: time.sleep(TICK_S), Window(3, seconds=0.05, ramp_s=0.01), [os.getpid()]
    )
    assert counted.seconds >= 0.05
    assert len(counted.latencies_s) >= 20


def test_a_wrong_answer_in_a_thread_is_raised() -> None:
    def call() -> None:
        raise ValueError("wrong answer")

    with pytest.raises(ValueError, match="wrong answer"):
        run_in_threads(call, Window(3, seconds=20), [])


# ------------------------------------------------------------ memory

MIB = 1024 * 1024


def test_files_in_memory_count_once_mapped_or_not() -> None:
    # In a process of its own: in this one, other tests' threads take and give memory meanwhile.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        empty, full, mapped, closed = processes.submit(growth_with_a_file).result(timeout=60)
    assert empty < 32  # it has no pages yet
    assert 60 < full < 72
    assert 60 < mapped < 72
    assert closed < 8


def growth_with_a_file() -> tuple[float, float, float, float]:
    """How many MiB this process gains by a file of 64 MiB: empty, full, mapped, closed."""
    own = [os.getpid()]
    before = memory_mib(own)
    file = os.memfd_create("test")
    try:
        os.truncate(file, 64 * MIB)
        empty = memory_mib(own) - before
        for _ in range(64):
            os.write(file, b"x" * MIB)
        full = memory_mib(own) - before
        with mmap.mmap(file, 64 * MIB) as view:
            assert sum(view[::4096]) > 0
            mapped = memory_mib(own) - before
    finally:
        os.close(file)
    return empty, full, mapped, memory_mib(own) - before


def test_memory_is_looked_at_before_during_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bytes] = []
    monkeypatch.setattr(memory, "LOOK_S", 0.0)

    async def call() -> None:
        kept.append(b"x" * 16 * MIB)
        if len(kept) == 4:
            kept.clear()

    found = asyncio.run(watched_calls(call, 8, 0.0, [os.getpid()]))
    assert found.calls == 8
    assert 40 < found.most - found.before < 60
    assert found.after - found.before < 8
    sample = found.sample(OURS, 0)
    assert sample.memory_left == found.after / found.before
    assert sample.calls_per_s == 8 / found.seconds


# ------------------------------------------------------------ the runner


class Notes:
    """A watcher that writes down what it is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.failures: list[str] = []
        self.results: list[CaseResult] = []

    def doing(self, text: str) -> None:
        self.texts.append(text)

    def passed(self, seconds: float) -> None:
        assert seconds > 0

    def finished(self, result: CaseResult) -> None:
        self.results.append(result)

    def failed(self, text: str) -> None:
        self.failures.append(text)


@pytest.mark.parametrize(
    ("name", "carrier", "error"),
    [
        (OURS, "local", None),
        (OVER_GRPC, "grpc", None),
        ("by reference", "", None),
        (OURS, "grpc", "carried by grpc instead of local"),
        (OURS, "grpc,local", "carried by grpc,local instead of local"),
        (OVER_GRPC, "local", "carried by local instead of grpc"),
        (OURS, "", "carried by nothing known instead of local"),
        ("serve: pickle", "grpc", "carried by grpc instead of none of serve_grpc"),
    ],
)
def test_a_sample_of_another_carrier_has_no_numbers(
    name: str, carrier: str, error: str | None
) -> None:
    sample = runner.checked(Sample(name, 1, calls_per_s=5.0, calls=1, carrier=carrier))
    assert (sample.contender, sample.round, sample.error) == (name, 1, error)
    assert sample.calls_per_s == (None if error else 5.0)
    failed = Sample(name, 1, error="TimeoutError")
    assert runner.checked(failed) == failed


def test_the_wrong_carrier_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = full_plan().only(["in-flight/throughput/1"]).cases
    plan = Plan(cases, rounds=1, window_s=0.1, has_growth=False, has_costs=False, is_quick=False)
    group = Group("wrong", "bench.tests.wrong_carrier_worker", {}, cases)
    monkeypatch.setattr(runner, "groups", lambda _cases: [group])
    notes = Notes()
    (result,), _ = runner.run_plan(plan, tmp_path, notes)
    by_name = {sample.contender: sample for sample in result.samples}
    assert by_name[OURS].calls_per_s == 5.0
    assert by_name[OVER_GRPC].calls_per_s is None
    reason = "carried by local instead of grpc"
    assert notes.failures == [f"in-flight/throughput/1: {OVER_GRPC}: {reason}"]


def test_a_worker_that_ends_early_leaves_samples_that_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = full_plan().only(["in-flight/throughput/1", "in-flight/throughput/10"]).cases
    plan = Plan(cases, rounds=2, window_s=0.1, has_growth=False, has_costs=False, is_quick=False)
    group = Group("failing", "bench.tests.failing_worker", {}, cases)
    monkeypatch.setattr(runner, "groups", lambda _cases: [group])
    notes = Notes()
    results, growth = runner.run_plan(plan, tmp_path, notes)
    assert growth == []
    assert [result.case.id for result in results] == [case.id for case in cases]
    for result in results:
        pairs = [(sample.contender, sample.round) for sample in result.samples]
        assert sorted(pairs) == sorted((name, n) for name in result.case.contenders for n in (0, 1))
    first, *others = results[0].samples
    assert (first.calls_per_s, first.error) == (5.0, None)
    for sample in (*others, *results[1].samples):
        assert sample.error == "the worker ended with status 3, see failing.log"
    assert notes.failures == ["failing: the worker ended with status 3, see failing.log"]
    assert "failing: about to fail" in notes.texts
    assert notes.results == results
    assert "not for the parent" in (tmp_path / "failing.log").read_text()
