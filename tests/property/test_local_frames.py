"""Frames of the socket carrier under any bytes: read as they were sent, or refused; no more memory
than has come."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serve_grpc.carriers.link import Cause
from serve_grpc.carriers.local import framing
from serve_grpc.carriers.local.framing import (
    ABORT,
    ACK,
    ASKS,
    CLOSE,
    MESSAGE,
    Decoder,
    Frame,
    FramingError,
    abort_body,
    header,
)

CHUNK_BYTES = 100
LIMIT = 1000

COUNTS = st.integers(0, 0xFFFF)
BODIES = st.binary(max_size=50) | st.integers(0, LIMIT).map(bytes)
FRAMES = st.one_of(
    st.tuples(st.just(MESSAGE), st.sampled_from([0, ASKS]), COUNTS, BODIES),
    st.tuples(st.sampled_from([ACK, CLOSE]), st.just(0), COUNTS, st.just(b"")),
    st.tuples(
        st.just(ABORT),
        st.just(0),
        COUNTS,
        st.builds(abort_body, st.sampled_from(list(Cause)), st.text(max_size=2000)),
    ),
)


@pytest.fixture(autouse=True, scope="module")
def small_chunks() -> Iterator[None]:
    """So small that a few bytes are more than one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(framing, "CHUNK_BYTES", CHUNK_BYTES)
        yield


def encoded(frames: list[Frame]) -> bytes:
    return b"".join(header(*head, len(body)) + body for *head, body in frames)


def feed(decoder: Decoder, data: bytes, steps: list[int]) -> list[Frame]:
    """Put it in, so many bytes at a time, again from the first step when they are used up."""
    frames: list[Frame] = []
    view, at, turn = memoryview(data), 0, 0
    while at < len(data):
        buffer = decoder.buffer()
        assert len(buffer) > 0
        count = min(len(buffer), len(data) - at, steps[turn % len(steps)])
        buffer[:count] = view[at : at + count]
        at, turn = at + count, turn + 1
        decoder.received(count, frames)
        held = sum(map(len, decoder._chunks)) + len(decoder._chunk)
        assert held <= at + CHUNK_BYTES
    return frames


STEPS = st.lists(st.integers(1, 20) | st.integers(50, 5000), min_size=1, max_size=9)


@given(st.lists(FRAMES, max_size=6), STEPS, st.integers(1, 500))
def test_frames_arrive_as_they_were_sent(
    frames: list[Frame], steps: list[int], scratch: int
) -> None:
    decoder = Decoder(LIMIT, memoryview(bytearray(scratch)))
    assert feed(decoder, encoded(frames), steps) == frames


@given(st.binary(max_size=400), st.lists(FRAMES, max_size=2), STEPS)
@example(b"\x01\x00\x00\x00\xff\xff\xff\xff", [], [1])
def test_any_bytes_are_frames_or_none(data: bytes, before: list[Frame], steps: list[int]) -> None:
    decoder = Decoder(LIMIT, memoryview(bytearray(4096)))
    assert feed(decoder, encoded(before), steps) == before
    with contextlib.suppress(FramingError):  # and no other error
        frames = feed(decoder, data, steps)
        assert data.startswith(encoded(frames))
