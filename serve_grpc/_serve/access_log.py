"""Serve's access log, line for line, written in bulk.

One line through `logging` costs more than everything else a small call needs. Lines are kept as
tuples and written a moment after the replies have left: to the same handlers, in the same format,
in order. A filter on Serve's logger writes them before any other record, so they keep their place
among the user's own lines. A handler that is not set up as Serve sets up its own gets real
records.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import logging.handlers
import threading
import time
from collections import deque
from typing import Any, NamedTuple

from ray.serve._private.constants import SERVE_LOGGER_NAME
from ray.serve._private.logging_utils import (
    ServeContextFilter,
    ServeFormatter,
    ServeLogAttributeRemovalFilter,
    access_log_msg,
    log_access_log_filter,
    log_to_stderr_filter,
)

__all__ = ["AccessLine", "AccessLog"]

WRITE_AFTER_S = 0.05
"""A killed process loses the lines of this time at most (docs/decisions/0006)."""
MAX_LINES = 2_000

# These drop no record (Ray 2.60, `serve/_private/logging_utils.py`), and what the first one adds an
# access line of Serve's brings along (`skip_context_filter`). Of other filters nobody knows.
_KNOWN_FILTERS = (ServeContextFilter, ServeLogAttributeRemovalFilter)


class AccessLine(NamedTuple):
    """What Serve logs of one request that ended.

    Attributes:
        time_s: When it ended, seconds since the epoch.
        path: The route at an ingress, the method's name elsewhere.
        latency_ms: How long it took at the replica.
        client: Address of the client behind it, "" if that is not known.
    """

    time_s: float
    request_id: str
    route: str
    method: str
    path: str
    status: str
    latency_ms: float
    client: str

    @property
    def text(self) -> str:
        """The message, as Serve words it."""
        message: str = access_log_msg(
            method=self.method,
            route=self.path,
            status=self.status,
            latency_ms=self.latency_ms,
            client=self.client,
        )
        return message


# As plain tuples, for a named one takes four times as long to make.
_Fields = tuple[float, str, str, str, str, str, float, str]


class AccessLog:
    """Buffers lines and writes them from `loop`, or from whichever thread logs something else.

    Args:
        loop: Loop of the replica's own thread.
        replica: Serve's replica, whose `_access_log_context` has the attributes of its records;
            a reconfiguration replaces them.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, replica: Any) -> None:
        self._loop = loop
        self._replica = replica
        self._lines: deque[_Fields] = deque()
        # Of the same thread again: a handler that logs while it writes comes back by our filter.
        self._writing = threading.RLock()
        self._logger = logging.getLogger(SERVE_LOGGER_NAME)
        self._timer: asyncio.TimerHandle | None = None
        self._logger.addFilter(self._before_other_records)
        atexit.register(self.write)

    def add(self, line: _Fields) -> None:
        """Keep one line: the fields of an `AccessLine`. Only from the loop's thread."""
        self._lines.append(line)
        if self._timer is None:
            self._timer = self._loop.call_later(WRITE_AFTER_S, self._on_timer)
        elif len(self._lines) >= MAX_LINES:
            self.write()

    def _on_timer(self) -> None:
        self._timer = None
        self.write()

    def close(self) -> None:
        """Write what is left and let go of the logger."""
        self.write()
        self._logger.removeFilter(self._before_other_records)
        atexit.unregister(self.write)

    def write(self) -> None:
        """Write everything kept; from any thread."""
        with self._writing:  # or two threads would write in each other's order
            # As many as there are now: the loop may go on adding while another thread writes.
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            if lines and self._logger.isEnabledFor(logging.INFO):
                rendered: dict[object, str] = {}
                for handler in self._logger.handlers:
                    _write_to(handler, lines, self._record, rendered)

    def _before_other_records(self, _: logging.LogRecord) -> bool:
        if self._lines:
            self.write()
        return True

    def _record(self, fields: _Fields) -> logging.LogRecord:
        line = AccessLine(*fields)
        extra = {
            **self._replica._access_log_context,
            "route": line.route,
            "request_id": line.request_id,
        }
        record = self._logger.makeRecord(
            self._logger.name, logging.INFO, __file__, 0, line.text, (), None, extra=extra
        )
        record.created = line.time_s
        record.msecs = int(line.time_s * 1000) % 1000
        return record


def _write_to(
    handler: logging.Handler,
    lines: list[_Fields],
    as_record: Any,
    rendered: dict[object, str],
) -> None:
    # `enable_access_log=False` is this filter, on each handler (`configure_component_logger`).
    if handler.level > logging.INFO or log_access_log_filter in handler.filters:
        return
    # Serve's log file is behind one of these; its own formatter and filters count as well.
    target: logging.Handler | None = handler
    if isinstance(handler, logging.handlers.MemoryHandler):
        target = handler.target
    if (
        isinstance(target, logging.StreamHandler)
        and _is_plain(target.formatter)
        and all(
            f is log_to_stderr_filter or isinstance(f, _KNOWN_FILTERS)
            for f in (*handler.filters, *target.filters)
        )
    ):
        handler.flush()  # what a memory handler still holds comes first
        # Serve's handlers, the file and stderr, have formatters alike.
        base: Any = target.formatter.request_formatter  # type: ignore[union-attr]
        alike = base._style._fmt, base.default_time_format, base.converter
        if alike not in rendered:
            rendered[alike] = _render(base, lines)
        _write_text(target, rendered[alike])
        return
    for line in lines:
        handler.handle(as_record(line))


def _is_plain(formatter: Any) -> bool:
    return type(formatter) is ServeFormatter and not formatter.additional_log_standard_attrs


def _render(base: Any, lines: list[_Fields]) -> str:
    # "%(levelname)s %(asctime)s app id %(request_id)s -- %(message)s", names resolved once.
    template: str = base._style._fmt % {
        "levelname": "INFO",
        "asctime": "%s",
        "request_id": "%s",
        "message": "%s",
    }
    begin, before_id, before_text, end = template.split("%s")
    out = []
    second, last_ms, prefix, until_id = -1, -1, "", ""
    # Of the text, only the latency is another one for each line.
    texts: dict[tuple[str, str, str, str], tuple[str, str]] = {}
    for time_s, request_id, _, method, path, status, latency_ms, client in lines:
        # As `logging.Formatter.formatTime` writes it, but each part only when it changes.
        ms = int(time_s * 1000)
        if ms != last_ms:
            last_ms = ms
            if int(time_s) != second:
                second = int(time_s)
                prefix = time.strftime(base.default_time_format, base.converter(second))
            until_id = f"{begin}{prefix},{ms % 1000:03d}{before_id}"
        key = method, path, status, client
        text = texts.get(key)
        if text is None:
            before, after = _around_latency(*key)
            text = texts[key] = before_text + before, after + end + "\n"
        out.append(f"{until_id}{request_id}{text[0]}{latency_ms:.1f}{text[1]}")
    return "".join(out)


def _around_latency(method: str, path: str, status: str, client: str) -> tuple[str, str]:
    """Of Serve's text of a line, what stands before the latency, and what behind it."""
    text = AccessLine(0.0, "", "", method, path, status, 0.0, client).text
    before, _, after = text.rpartition("0.0")
    return before, after


def _write_text(handler: logging.StreamHandler[Any], text: str) -> None:
    handler.acquire()
    try:
        if isinstance(handler, logging.handlers.RotatingFileHandler):
            # The rule of `RotatingFileHandler.shouldRollover`, which wants a record. All of a write
            # goes into one file, so a file may end a little short of its size.
            if handler.stream is None:
                handler.stream = handler._open()
            if 0 < handler.maxBytes <= handler.stream.tell() + len(text):
                handler.doRollover()
                if handler.stream is None:  # one that opens its file with the first line
                    handler.stream = handler._open()
        handler.stream.write(text)
        handler.flush()
    finally:
        handler.release()
