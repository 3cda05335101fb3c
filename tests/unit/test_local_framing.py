"""Frames of the socket carrier as bytes: what is one, what is none, and what memory they take."""

from __future__ import annotations

import pytest

from serve_grpc.carriers.link import Cause
from serve_grpc.carriers.local import framing
from serve_grpc.carriers.local.framing import (
    ABORT,
    ACK,
    ASKS,
    CHUNK_BYTES,
    CLOSE,
    HEADER,
    MAX_REASON_BYTES,
    MESSAGE,
    Decoder,
    Frame,
    FramingError,
    abort_body,
    header,
    read_abort,
)

LIMIT = 4 * 1024 * 1024


def new_decoder(scratch_bytes: int = 64) -> Decoder:
    return Decoder(LIMIT, memoryview(bytearray(scratch_bytes)))


def feed(decoder: Decoder, data: bytes, step: int = 2**31) -> list[Frame]:
    """Put `data` in, at most `step` bytes at a time."""
    frames: list[Frame] = []
    while data:
        buffer = decoder.buffer()
        count = min(len(buffer), len(data), step)
        buffer[:count] = data[:count]
        del buffer
        data = data[count:]
        decoder.received(count, frames)
    return frames


def message(body: bytes, flags: int = 0, taken: int = 0) -> bytes:
    return header(MESSAGE, flags, taken, len(body)) + body


@pytest.mark.parametrize("step", [1, 3, 7, 8, 9, 64])
def test_frames_are_read_however_they_are_split(step: int) -> None:
    large = bytes(range(256)) * 3000
    sent = [
        (MESSAGE, 0, 0, b""),
        (MESSAGE, ASKS, 1, b"one"),
        (ACK, 0, 2, b""),
        (MESSAGE, 0, 65535, large if step > 9 else large[:1000]),
        (ABORT, 0, 3, abort_body(Cause.LIMIT, "too many")),
        (CLOSE, 0, 4, b""),
    ]
    data = b"".join(header(*head, len(body)) + body for *head, body in sent)
    assert feed(new_decoder(), data, step) == sent


def test_a_body_ends_where_it_ends() -> None:
    """What comes behind a large body is not read into it, whatever the kernel has."""
    decoder = new_decoder()
    body = bytes(CHUNK_BYTES + 100)
    assert feed(decoder, message(body)[:50]) == []
    assert len(decoder.buffer()) <= len(body) - (50 - HEADER.size)
    assert feed(decoder, message(body)[50:] + message(b"next")) == [
        (MESSAGE, 0, 0, body),
        (MESSAGE, 0, 0, b"next"),
    ]


def test_memory_is_taken_as_bytes_come() -> None:
    decoder = new_decoder()
    feed(decoder, header(MESSAGE, 0, 0, LIMIT))
    for arrived in range(0, LIMIT, 50_000):
        held = sum(len(chunk) for chunk in decoder._chunks) + len(decoder._chunk)
        assert held <= arrived + CHUNK_BYTES
        feed(decoder, bytes(min(50_000, LIMIT - arrived)))
    assert decoder._chunks == []
    assert len(decoder._chunk) == 0


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (header(MESSAGE, 0, 0, LIMIT + 1), "over the limit"),
        (header(MESSAGE, 0, 0, 2**32 - 1), "over the limit"),
        (header(MESSAGE, 2, 0, 0), "kind 1, flags 2"),
        (header(ACK, 0, 0, 1), "kind 2"),
        (header(ACK, ASKS, 0, 0), "kind 2"),
        (header(CLOSE, 0, 0, 1), "kind 3"),
        (header(ABORT, 0, 0, 0), "kind 4"),
        (header(ABORT, 0, 0, MAX_REASON_BYTES + 2), "kind 4"),
        (header(0, 0, 0, 0), "kind 0"),
        (header(9, 0, 0, 0), "kind 9"),
        (b"GET / HTTP/1.1\r\n\r\n", "kind 71"),
        (b"PRI * HTTP/2.0\r\n\r\n", "kind 80"),
    ],
)
def test_what_is_no_frame_is_told_and_what_came_before_it_counts(bad: bytes, says: str) -> None:
    decoder = new_decoder(1024)
    data = message(b"before") + bad
    decoder.buffer()[: len(data)] = data
    frames: list[Frame] = []
    with pytest.raises(FramingError, match=says):
        decoder.received(len(data), frames)
    assert frames == [(MESSAGE, 0, 0, b"before")]


def test_the_largest_message_is_taken() -> None:
    assert feed(new_decoder(), message(bytes(LIMIT))) == [(MESSAGE, 0, 0, bytes(LIMIT))]


@pytest.mark.parametrize("cause", list(Cause))
def test_the_reason_of_an_abort_arrives(cause: Cause) -> None:
    assert (
        read_abort(abort_body(cause, "zu viele Schlüssel")) == f"{cause.name}: zu viele Schlüssel"
    )


def test_a_reason_is_read_whatever_it_is() -> None:
    long = read_abort(abort_body(Cause.LEFT, "ü" * MAX_REASON_BYTES))
    assert long == "LEFT: " + "ü" * (MAX_REASON_BYTES // 2)
    assert read_abort(abort_body(Cause.LEFT, "\ud800")) == "LEFT: ?"
    assert read_abort(b"\xff\xff") == "UNKNOWN: \ufffd"
    # Cut in the midst of a character.
    assert read_abort(abort_body(Cause.LEFT, "aü" * MAX_REASON_BYTES))[-1] in "aü\ufffd"


def test_every_cause_has_a_number() -> None:
    assert set(framing._CAUSES) == set(Cause)
    assert len(set(framing._CAUSES.values())) == len(Cause)
