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
MAX_LINES = 2_000

_KNOWN_FILTERS = (ServeContextFilter, ServeLogAttributeRemovalFilter)


class AccessLine(NamedTuple):
    """One request."""

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
        self._lines: deque[AccessLine] = deque()
        self._writing = threading.RLock()
        self._logger = logging.getLogger(SERVE_LOGGER_NAME)
        self._timer: asyncio.TimerHandle | None = None
        self._logger.addFilter(self._before_other_records)
        atexit.register(self.write)

    def add(self, line: AccessLine) -> None:
        """Keep one line. Only from the loop's thread."""
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
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            if lines and self._logger.isEnabledFor(logging.INFO):
                for handler in self._logger.handlers:
                    _write_to(handler, lines, self._record)

    def _before_other_records(self, _: logging.LogRecord) -> bool:
        if self._lines:
            self.write()
        return True

    def _record(self, line: AccessLine) -> logging.LogRecord:
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


def _write_to(handler: logging.Handler, lines: list[AccessLine], as_record: Any) -> None:
    if handler.level > logging.INFO or log_access_log_filter in handler.filters:
        return
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
        _write_text(target, _render(target.formatter, lines))
        return
    for line in lines:
        handler.handle(as_record(line))


def _is_plain(formatter: Any) -> bool:
    return type(formatter) is ServeFormatter and not formatter.additional_log_standard_attrs


def _render(formatter: Any, lines: list[AccessLine]) -> str:
    base = formatter.request_formatter
    # "%(levelname)s %(asctime)s app id %(request_id)s -- %(message)s", names resolved once.
    template: str = base._style._fmt % {
        "levelname": "INFO",
        "asctime": "%s",
        "request_id": "%s",
        "message": "%s",
    }
    out = []
    second, prefix = -1, ""
    for line in lines:
        if int(line.time_s) != second:
            second = int(line.time_s)
            prefix = time.strftime(base.default_time_format, base.converter(second))
        asctime = f"{prefix},{int(line.time_s * 1000) % 1000:03d}"
        out.append(template % (asctime, line.request_id, line.text))
    out.append("")
    return "\n".join(out)


def _write_text(handler: logging.StreamHandler[Any], text: str) -> None:
    handler.acquire()
    try:
        if isinstance(handler, logging.handlers.RotatingFileHandler):
            if handler.stream is None:
                handler.stream = handler._open()
            if 0 < handler.maxBytes <= handler.stream.tell() + len(text):
                handler.doRollover()
        handler.stream.write(text)
        handler.flush()
    finally:
        handler.release()
