"""A peer that speaks HTTP/2 frame by frame, so that it can do what no library would."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

__all__ = ["PREFACE", "SESSION", "SETTINGS", "RawPeer", "frame", "grpc_message", "headers"]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS_FRAME, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    0, 1, 3, 4, 6, 7, 8, 9,
)  # fmt: skip
ACK = END_STREAM = 1
END_HEADERS = 4
FRAME_BYTES = 16_000
SESSION = "/serve_grpc.v1.Replica/Session"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return (
        len(payload).to_bytes(3, "big")
        + bytes((kind, flags))
        + stream.to_bytes(4, "big")
        + (payload)
    )


SETTINGS = frame(SETTINGS_FRAME, 0, 0)


def _text(text: str | bytes) -> bytes:
    data = text if isinstance(text, bytes) else text.encode()
    left = len(data)
    if left < 127:
        return bytes((left,)) + data
    length, left = bytearray((127,)), left - 127
    while left > 127:
        length.append(left & 127 | 128)
        left >>= 7
    length.append(left)
    return bytes(length) + data


def headers(path: str, more: Iterable[tuple[str, str]] = ()) -> bytes:
    """The header block of a gRPC call: literals that nobody indexes."""
    fields = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "peer"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *more,
    )
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)


def grpc_message(data: bytes, *, is_compressed: bool = False) -> bytes:
    """A message as it stands in DATA frames."""
    return bytes((is_compressed,)) + len(data).to_bytes(4, "big") + data


class RawPeer:
    """A connection. Acknowledges settings and pings while `is_polite`.

    Attributes:
        frames: What came: (kind, stream, payload).
        closed_s: When the connection was over, from its start; None while it is open.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.is_polite = True
        self.frames: list[tuple[int, int, bytes]] = []
        self.closed_s: float | None = None
        self._reader, self.writer = reader, writer
        self._started_s = time.monotonic()
        self._window = self._initial_window = 65_535
        self._opened = asyncio.Event()
        self._windows: dict[int, int] = {}
        self._task = asyncio.ensure_future(self._read())

    @classmethod
    async def connect(cls, port: int, first: bytes = PREFACE + SETTINGS) -> RawPeer:
        """Connect and send `first`."""
        peer = cls(*await asyncio.open_connection("127.0.0.1", port))
        peer.send(first)
        return peer

    def send(self, data: bytes) -> None:
        """Send bytes as they are; nothing happens once the connection is over."""
        if self.closed_s is None:
            self.writer.write(data)

    def open(self, stream: int, path: str, more: Iterable[tuple[str, str]] = ()) -> None:
        """Open a call."""
        self.send(frame(HEADERS, END_HEADERS, stream, headers(path, more)))
        self._windows[stream] = self._initial_window

    async def data(self, stream: int, data: bytes, *, ends: bool = False) -> None:
        """Send data of a call as flow control allows it; returns early if the call is over."""
        for start in range(0, len(data), FRAME_BYTES):
            part = data[start : start + FRAME_BYTES]
            while min(self._window, self._windows[stream]) < len(part):
                if self.is_over(stream):
                    return
                self._opened.clear()
                await self._opened.wait()
            self._window -= len(part)
            self._windows[stream] -= len(part)
            last = ends and start + FRAME_BYTES >= len(data)
            self.send(frame(DATA, END_STREAM if last else 0, stream, part))

    def is_over(self, stream: int) -> bool:
        """Whether the peer ended this call, or the connection."""
        return self.closed_s is not None or any(
            number == stream and kind in (RST_STREAM, HEADERS) for kind, number, _ in self.frames
        )

    def said(self, text: str) -> bool:
        """Whether a header block or a farewell held this text."""
        return any(text.encode() in payload for _, _, payload in self.frames)

    async def close(self) -> None:
        """Leave."""
        self._task.cancel()
        self.writer.close()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _read(self) -> None:
        try:
            while True:
                head = await self._reader.readexactly(9)
                payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
                self._on_frame(head[3], head[4], int.from_bytes(head[5:], "big"), payload)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed_s = time.monotonic() - self._started_s
            self._opened.set()

    def _on_frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        self.frames.append((kind, stream, payload))
        if kind in (SETTINGS_FRAME, PING) and not flags & ACK and self.is_polite:
            self.send(frame(kind, ACK, 0, payload if kind == PING else b""))
        if kind == SETTINGS_FRAME and not flags & ACK:
            for start in range(0, len(payload), 6):
                if payload[start : start + 2] == b"\0\4":  # of streams that are opened later
                    self._initial_window = int.from_bytes(payload[start + 2 : start + 6], "big")
        if kind == WINDOW_UPDATE:
            more = int.from_bytes(payload, "big")
            if stream:
                self._windows[stream] = self._windows.get(stream, 65_535) + more
            else:
                self._window += more
        self._opened.set()
