"""What the micro-benchmarks share: the `cost` fixture, and a table of CPU time per call at the end.

Times are CPU time of the process, not wall time, so other work on the machine disturbs them less.
A test may hand in a batch; what is reported is per call, also in the JSON of pytest-benchmark as
`extra_info`: "what", "part", "side", "calls", "us_per_call".
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

ROOT = str(Path(__file__).resolve().parent.parent.parent)
if ROOT not in sys.path:  # `pytest` instead of `python -m pytest`
    sys.path.insert(0, ROOT)

HERE = Path(__file__).parent
MAX_S = 0.3
ROUNDS = 300


class Cost:
    """Times one function and notes what it costs per call.

    Args:
        benchmark: Of pytest-benchmark.
    """

    def __init__(self, benchmark: Any) -> None:
        self._benchmark = benchmark

    def __call__(
        self,
        run: Callable[..., Any],
        *args: Any,
        part: str,
        side: str,
        calls: int = 1,
        statistic: str = "median",
    ) -> Any:
        """Time `run(*args)`, which does `calls` calls; returns what it returned.

        With `statistic="mean"` work that only some of the runs do, such as writing the access log
        every 50 ms, is shared out over all calls.
        """
        result = self._benchmark(run, *args)
        self._note(part, side, calls, statistic)
        return result

    def of_prepared(
        self,
        run: Callable[..., Any],
        prepare: Callable[[], tuple[Any, ...]],
        *,
        part: str,
        side: str,
        calls: int = 1,
    ) -> Any:
        """The same for `run(*prepare())`, without the time of `prepare`."""
        result = self._benchmark.pedantic(
            run, setup=lambda: (prepare(), {}), rounds=ROUNDS, warmup_rounds=5
        )
        self._note(part, side, calls, "median")
        return result

    def _note(self, part: str, side: str, calls: int, statistic: str) -> None:
        what = _in_words(self._benchmark.name)
        info: dict[str, Any] = {"what": what, "part": part, "side": side, "calls": calls}
        if self._benchmark.stats is not None:  # None with --benchmark-disable
            seconds = getattr(self._benchmark.stats.stats, statistic)
            info["us_per_call"] = round(seconds / calls * 1e6, 3)
        self._benchmark.extra_info.update(info)


def _in_words(name: str) -> str:
    """A test's name: "batch to bytes, replies" of "test_batch_to_bytes[replies]"."""
    words = name.removeprefix("test_").rstrip("]").replace("_", " ")
    return words.replace("[", ", ").replace("-", ", ")


@pytest.fixture
def cost(benchmark: Any) -> Cost:
    """Times one function."""
    return Cost(benchmark)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """CPU time as the clock, and a third of a second for each."""
    for item in items:
        if HERE in item.path.parents:
            mark = pytest.mark.benchmark(
                timer=time.process_time, max_time=MAX_S, min_time=0.0005, disable_gc=True
            )
            item.add_marker(mark)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The table: one row a benchmark, in the order in which they ran."""
    session = getattr(config, "_benchmarksession", None)
    rows = list(_rows(session.benchmarks)) if session is not None else []
    if not rows:
        return
    table = Table(title="CPU time per call", title_justify="left")
    for heading in ("part", "side", "what"):
        table.add_column(heading)
    table.add_column("µs per call", justify="right")
    for row in rows:
        table.add_row(*row)
    terminalreporter.ensure_newline()
    Console(file=terminalreporter._tw._file, width=100).print(table)


def _rows(benchmarks: Any) -> Iterator[tuple[str, str, str, str]]:
    for benchmark in benchmarks:
        info = benchmark.extra_info
        if "us_per_call" in info:
            yield info["part"], info["side"], info["what"], f"{info['us_per_call']:.2f}"
