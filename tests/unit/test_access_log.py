"""Access lines in bulk: the text that Serve's own logging would write, in its place and order."""

from __future__ import annotations

import asyncio
import io
import logging
import logging.handlers
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.serve._private.constants import SERVE_LOGGER_NAME
from ray.serve._private.logging_utils import ServeFormatter, log_access_log_filter

from serve_grpc._serve import access_log
from serve_grpc._serve.access_log import AccessLine, AccessLog

LOGGER = logging.getLogger(SERVE_LOGGER_NAME)
REPLICA = SimpleNamespace(
    _access_log_context={"skip_context_filter": True, "serve_access_log": True}
)


def line(number: int, time_s: float = 1_700_000_000.25) -> AccessLine:
    return AccessLine(
        time_s, f"request-{number}", "/echo", "CALL", "echo", "OK", 1.5 + number, "peer"
    )


class Kept(logging.Handler):
    """Not set up as Serve sets up its own: gets records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """What a handler of Serve's writes, and no other handler is there."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(ServeFormatter("replica", "id"))
    before = LOGGER.handlers[:], LOGGER.level, LOGGER.propagate
    LOGGER.handlers[:], LOGGER.propagate = [handler], False
    LOGGER.setLevel(logging.INFO)
    yield text
    LOGGER.handlers[:], LOGGER.propagate = before[0], before[2]
    LOGGER.setLevel(before[1])


class Loop:
    """Keeps what is to be called later."""

    def __init__(self) -> None:
        self.later: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> object:
        self.later.append((delay_s, callback))
        return object()


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def log(stream: io.StringIO, loop: Loop) -> Iterator[AccessLog]:
    log = AccessLog(loop, REPLICA)
    yield log
    log.close()


def as_records(log: AccessLog, lines: list[AccessLine]) -> str:
    """What Serve's formatter makes of a record for each."""
    formatter = ServeFormatter("replica", "id")
    return "".join(formatter.format(log._record(line)) + "\n" for line in lines)


def test_the_text_is_what_serves_formatter_makes(log: AccessLog, stream: io.StringIO) -> None:
    lines = [line(0), line(1, 1_700_000_000.999), line(2, 1_700_000_001.0), line(3, 1_600_000_000)]
    for one in lines:
        log.add(one)
    assert stream.getvalue() == ""
    log.write()
    assert stream.getvalue() == as_records(log, lines)
    assert "request-2" in stream.getvalue()


def test_lines_are_written_a_moment_later(log: AccessLog, loop: Loop, stream: io.StringIO) -> None:
    log.add(line(0))
    log.add(line(1))
    ((delay_s, write),) = loop.later
    assert delay_s == access_log.WRITE_AFTER_S
    write()
    assert stream.getvalue().count("\n") == 2
    log.add(line(2))
    assert len(loop.later) == 2


def test_many_lines_do_not_wait(
    log: AccessLog, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_log, "MAX_LINES", 3)
    for number in range(4):
        log.add(line(number))
    assert stream.getvalue().count("\n") == 3


def test_they_stand_before_what_is_logged_later(log: AccessLog, stream: io.StringIO) -> None:
    log.add(line(0))
    LOGGER.info("the user's")
    written = stream.getvalue().splitlines()
    assert [("request-0" in text, "the user's" in text) for text in written] == [
        (True, False),
        (False, True),
    ]


def test_what_a_memory_handler_holds_comes_first(log: AccessLog, stream: io.StringIO) -> None:
    target = LOGGER.handlers[0]
    LOGGER.handlers[:] = [logging.handlers.MemoryHandler(100, target=target)]
    LOGGER.info("earlier")
    log.add(line(0))
    log.write()
    assert ["earlier" in text for text in stream.getvalue().splitlines()] == [True, False]


def test_another_handler_gets_records(log: AccessLog, stream: io.StringIO) -> None:
    kept = Kept()
    LOGGER.handlers[:] = [kept]
    log.add(line(4))
    log.write()
    (record,) = kept.records
    assert record.getMessage() == line(4).text
    assert (record.request_id, record.route) == ("request-4", "/echo")  # type: ignore[attr-defined]
    assert (record.created, record.msecs) == (1_700_000_000.25, 250)
    assert record.serve_access_log is True  # type: ignore[attr-defined]


def test_who_wants_no_access_lines_gets_none(log: AccessLog, stream: io.StringIO) -> None:
    quiet, strict = Kept(), Kept()
    quiet.addFilter(log_access_log_filter)
    strict.setLevel(logging.WARNING)
    LOGGER.handlers[:] = [quiet, strict]
    log.add(line(0))
    log.write()
    assert quiet.records == strict.records == []
    LOGGER.setLevel(logging.WARNING)
    kept = Kept()
    LOGGER.handlers[:] = [kept]
    log.add(line(1))
    log.write()
    assert kept.records == []


def test_at_its_end_it_writes_and_lets_go_of_the_logger(loop: Loop, stream: io.StringIO) -> None:
    log = AccessLog(loop, REPLICA)
    log.add(line(0))
    log.close()
    assert "request-0" in stream.getvalue()
    assert log._before_other_records not in LOGGER.filters


@pytest.mark.parametrize("opens_late", [False, True])
def test_a_file_that_is_full_is_rolled_over_before_the_lines(
    log: AccessLog, tmp_path: Path, stream: io.StringIO, opens_late: bool
) -> None:
    one = len(as_records(log, [line(0)]))
    file = logging.handlers.RotatingFileHandler(
        tmp_path / "log", maxBytes=one + one // 2, backupCount=1, delay=opens_late
    )
    file.setFormatter(ServeFormatter("replica", "id"))
    LOGGER.handlers[:] = [file]
    for number in range(2):
        log.add(line(number))
        log.write()
    file.close()
    assert "request-0" in (tmp_path / "log.1").read_text()
    assert "request-1" in (tmp_path / "log").read_text()
    assert "request-0" not in (tmp_path / "log").read_text()


def test_asyncio_gives_the_timer(stream: io.StringIO) -> None:
    async def main() -> None:
        log = AccessLog(asyncio.get_running_loop(), REPLICA)
        log.add(line(0))
        begin_s = asyncio.get_running_loop().time()
        while not stream.getvalue():
            await asyncio.sleep(0.005)
            assert asyncio.get_running_loop().time() < begin_s + 20
        log.close()

    asyncio.run(main())
