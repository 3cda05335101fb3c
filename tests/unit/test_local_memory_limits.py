"""Shared memory of a local link: what a peer cannot take, and peers that lie."""

from __future__ import annotations

import array
import asyncio
import errno
import os
import resource
import socket
from collections.abc import Callable

import pytest

from serve_grpc.carriers.link import LinkLost
from serve_grpc.carriers.local.framing import (
    ABANDONED,
    FORGOTTEN,
    MESSAGE,
    RELEASED,
    SEGMENT,
    SEGMENT_BODY,
    header,
)
from serve_grpc.carriers.local.link import LocalLink
from serve_grpc.payload import Segments
from serve_grpc.protocol.places import Place
from serve_grpc.shared_memory import mappings
from serve_grpc.shared_memory import pool as pool_module
from serve_grpc.shared_memory.pieces import range_of
from serve_grpc.shared_memory.process import ProcessMemory
from serve_grpc.shared_memory.segments import create, is_available
from tests.descriptors import nothing_left_open
from tests.unit.local_memories import (
    MIB,
    SIZE,
    between,
    lent,
    piece,
    reading,
    until,
)

pytestmark = pytest.mark.skipif(not is_available(), reason="this platform has no memfd")


def test_what_the_receiver_may_not_map_is_copied(process: ProcessMemory) -> None:
    """The receiver has a smaller limit than the sender's pool."""

    async def check(near: LocalLink, far: LocalLink) -> None:
        assert far.memory is not None
        mapped = await lent(near, far, piece(process))
        for round_ in range(3):
            fill = b"%d" % round_
            part = piece(process, fill, size=3 * MIB)
            came = Segments([await lent(near, far, part)])
            heard = reading(near)
            del part
            # The sender may write there again: what came is a copy.
            await until(lambda: process.statistics.bytes_in_use < MIB)
            first, second = bytearray(came.parts[0]), bytearray(came.parts[0])
            first[:] = b"w" * len(first)
            assert second == fill * 3 * MIB
            heard.cancel()
        assert process.statistics.made == 2
        assert bytes(mapped) == b"x" * SIZE
        heard = reading(far)
        process.trim(1e12)
        await until(lambda: far.memory is not None and not far.memory._borrowed.unmapped._found)
        heard.cancel()
        with pytest.raises(ValueError, match="no segment 2"):
            far.memory.borrow(Place(2, 0, 5))

    process.most_mapped = 2 * MIB
    with nothing_left_open():
        between(check)
        process.trim(1e12)


def test_without_addresses_for_a_mapping_what_comes_is_copied(
    process: ProcessMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(*_: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    async def check(near: LocalLink, far: LocalLink) -> None:
        monkeypatch.setattr(mappings, "map_fd", no_more)
        for fill in (b"a", b"b"):
            assert bytes(await lent(near, far, piece(process, fill))) == fill * SIZE

    between(check)


def test_a_receiver_without_descriptors_says_so(process: ProcessMemory) -> None:
    async def check(near: LocalLink, far: LocalLink) -> None:
        assert near.memory is not None
        assert near.memory.lend(piece(process)) is not None
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            assert "no descriptors left for shared memory" in await end_of(far)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert "no descriptors left for shared memory" in await end_of(near)

    between(check)


@pytest.mark.parametrize("is_taken", [False, True])
def test_a_sender_whose_descriptors_were_closed_sends_bytes(
    process: ProcessMemory, is_taken: bool
) -> None:
    """As a program does that becomes a daemon; another file may have the number then."""

    async def check(near: LocalLink, far: LocalLink) -> None:
        assert near.memory is not None
        part = piece(process)
        found = range_of(part)
        assert found is not None
        number = found.fd
        os.close(number)
        if is_taken:
            assert os.open(os.devnull, os.O_RDONLY) == number
        assert near.memory.lend(part) is None
        _, message = await asyncio.gather(near.write(b"bytes"), far.read())
        assert message == b"bytes"
        del part, found
        process.trim(1e12)
        assert process.statistics.segments == 0
        if is_taken:
            os.close(number)  # it is still there
        assert bytes(await lent(near, far, piece(process))) == b"x" * SIZE

    between(check)


@pytest.mark.parametrize("place", [Place(1, 0, 0), Place(1, 0, 2**40), Place(1, 8 * MIB, 1)])
def test_a_range_that_is_not_there_is_not_copied(process: ProcessMemory, place: Place) -> None:
    async def check(near: LocalLink, far: LocalLink) -> None:
        await lent(near, far, piece(process, size=3 * MIB))
        assert far.memory is not None
        with pytest.raises(ValueError, match="has no range"):
            far.memory.borrow(place)

    process.most_mapped = MIB
    between(check)


def test_no_more_descriptors_are_sent_before_a_message_than_a_peer_takes(
    process: ProcessMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A payload of many pieces, each in a segment that the peer does not know."""

    async def check(near: LocalLink, far: LocalLink) -> None:
        assert near.memory is not None
        assert far.memory is not None
        parts = [piece(process, b"%d" % (number % 10)) for number in range(300)]
        assert process.statistics.segments > 253
        for count in (128, 128):
            places = [near.memory.lend(part) for part in parts]
            assert sum(place is not None for place in places) == count
            _, message = await asyncio.gather(near.write(b"they are there"), far.read())
            assert message == b"they are there"
            for place, part in zip(places, parts, strict=True):
                if place is not None:
                    assert far.memory.borrow(place) == part

    monkeypatch.setattr(pool_module, "LARGEST_SEGMENT_BYTES", 1)  # one range in each
    between(check)


def frame(kind: int, body: bytes) -> bytes:
    return header(kind, 0, 0, len(body)) + body


MESSAGE_FRAME = frame(MESSAGE, b"m")


def rights(*descriptors: int) -> list[tuple[int, int, array.array[int]]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]


async def end_of(link: LocalLink) -> str:
    """Why it ended, once all that came before is read."""
    try:
        while True:
            await link.read()
    except LinkLost as lost:
        return lost.reason


def refused(match: str, send: Callable[[socket.socket], object], *, accepted: bool = False) -> None:
    async def main() -> None:
        ours, raw = socket.socketpair(socket.AF_UNIX)
        near = LocalLink(ours, is_accepted=accepted)
        with raw:
            before = len(os.listdir("/proc/self/fd"))
            send(raw)
            assert match in await end_of(near)
            await near.close()
            assert len(os.listdir("/proc/self/fd")) == before - 1  # the link's socket

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_segment_without_a_descriptor(process: ProcessMemory) -> None:
    refused(
        "without its descriptor", lambda raw: raw.send(frame(SEGMENT, SEGMENT_BODY.pack(1, 4096)))
    )


def test_a_segment_before_the_peer_has_proved_itself(process: ProcessMemory) -> None:
    segment = create(65536)
    sent = [frame(SEGMENT, SEGMENT_BODY.pack(1, 65536)), MESSAGE_FRAME]
    refused("nobody asked for", lambda raw: raw.sendmsg(sent, rights(segment.fd)), accepted=True)
    segment.close()


def test_a_pipe_for_a_segment(process: ProcessMemory) -> None:
    reader, writer = os.pipe()
    sent = [frame(SEGMENT, SEGMENT_BODY.pack(1, 4096)), MESSAGE_FRAME]
    refused("a segment is refused", lambda raw: raw.sendmsg(sent, rights(reader)))
    os.close(reader)
    os.close(writer)


def test_a_segment_of_another_size(process: ProcessMemory) -> None:
    segment = create(65536)
    sent = [frame(SEGMENT, SEGMENT_BODY.pack(1, 131072)), MESSAGE_FRAME]
    refused("were announced", lambda raw: raw.sendmsg(sent, rights(segment.fd)))
    segment.close()


def test_the_most_descriptors_in_one_message(process: ProcessMemory) -> None:
    segment = create(65536)
    sent = [frame(SEGMENT, SEGMENT_BODY.pack(1, 65536)), MESSAGE_FRAME]
    refused("nobody asked for", lambda raw: raw.sendmsg(sent, rights(*[segment.fd] * 253)))
    segment.close()


def test_a_flood_of_descriptors(process: ProcessMemory) -> None:
    segment = create(65536)

    def send(raw: socket.socket) -> None:
        for number in range(1, 255):
            raw.sendmsg([frame(SEGMENT, SEGMENT_BODY.pack(number, 65536))], rights(segment.fd))

    refused("over 253 descriptors", send)
    segment.close()


@pytest.mark.parametrize("kind", [RELEASED, FORGOTTEN, ABANDONED])
def test_what_was_never_lent_is_given_back(process: ProcessMemory, kind: int) -> None:
    body = b"\1\0\0\0" + bytes(0 if kind == FORGOTTEN else 8)
    reason = "a segment, and has sent none" if kind == FORGOTTEN else "segment 1"
    refused(reason, lambda raw: raw.send(frame(kind, body)))


def test_a_place_that_is_not_there(process: ProcessMemory) -> None:
    async def check(near: LocalLink, far: LocalLink) -> None:
        await lent(near, far, piece(process))
        assert far.memory is not None
        for place in (Place(9, 0, 5), Place(1, 0, 2**40), Place(1, 7, 5), Place(1, 0, 0)):
            with pytest.raises(ValueError, match="segment"):
                far.memory.borrow(place)

    between(check)
