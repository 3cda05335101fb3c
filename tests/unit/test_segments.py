"""Segments: made and sealed, and what a peer may send in place of one."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serve_grpc.shared_memory import segments
from serve_grpc.shared_memory.segments import (
    Segment,
    SegmentRefusedError,
    check,
    create,
    is_available,
    map_fd,
)
from tests.descriptors import nothing_left_open
from tests.unit.shared_memory_ends import SIZE, is_open, needs_memfd

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW if is_available() else 0
LIMIT = 1 << 30


@pytest.fixture
def segment() -> Iterator[Segment]:
    made = create(SIZE)
    yield made
    made.close()


def memory(size: int = SIZE, seals: int = SEALS, *, is_filled: bool = True, flags: int = 0) -> int:
    """A memory file, as a peer might make one."""
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING | flags)
    if is_filled:
        os.posix_fallocate(fd, 0, size)
    else:
        os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


@contextmanager
def refused(fd: int, text: str, size: int = SIZE, limit: int = LIMIT) -> Iterator[None]:
    """It is refused with a text, and not closed."""
    try:
        with pytest.raises(SegmentRefusedError, match=text):
            check(fd, size, limit)
        yield
        assert is_open(fd)
    finally:
        os.close(fd)


def test_it_is_not_there_where_the_system_has_no_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_available() == (sys.platform == "linux")
    monkeypatch.setattr(segments.sys, "platform", "darwin")
    assert not is_available()


pytestmark = needs_memfd


class TestMade:
    def test_it_can_be_written_and_passes_its_own_check(self, segment: Segment) -> None:
        segment.view[:3] = b"abc"
        check(segment.fd, SIZE, LIMIT)
        assert os.pread(segment.fd, 4, 0) == b"abc\0"

    def test_all_its_memory_is_there(self, segment: Segment) -> None:
        assert os.fstat(segment.fd).st_blocks * 512 >= SIZE

    def test_it_is_not_inherited(self, segment: Segment) -> None:
        assert not os.get_inheritable(segment.fd)

    @pytest.mark.parametrize("size", [0, SIZE // 2, SIZE * 2])
    def test_nobody_changes_its_size(self, segment: Segment, size: int) -> None:
        with pytest.raises(PermissionError):
            os.ftruncate(segment.fd, size)

    def test_nobody_changes_its_seals(self, segment: Segment) -> None:
        with pytest.raises(PermissionError):
            fcntl.fcntl(segment.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)

    def test_who_has_the_descriptor_cannot_write(self, segment: Segment) -> None:
        if not fcntl.fcntl(segment.fd, fcntl.F_GET_SEALS) & segments.F_SEAL_FUTURE_WRITE:
            pytest.skip("this kernel has no seal against later writers")
        with pytest.raises(PermissionError):
            os.pwrite(segment.fd, b"x", 0)
        with pytest.raises(PermissionError):
            mmap.mmap(segment.fd, SIZE)
        segment.view[0] = 1  # we still can

    @pytest.mark.parametrize("refused_flag", [segments.MFD_NOEXEC_SEAL, 0])
    def test_a_kernel_without_the_newest_flag_or_seal_will_do(
        self, monkeypatch: pytest.MonkeyPatch, refused_flag: int
    ) -> None:
        make, control = os.memfd_create, fcntl.fcntl

        def old_make(name: str, flags: int) -> int:
            if flags & refused_flag:
                raise OSError(22, "Invalid argument")
            return make(name, flags)

        def old_control(fd: int, command: int, value: int = 0) -> int:
            if command == fcntl.F_ADD_SEALS and value & segments.F_SEAL_FUTURE_WRITE:
                raise OSError(22, "Invalid argument")
            return control(fd, command, value)

        with monkeypatch.context() as patch:
            patch.setattr(segments.os, "memfd_create", old_make)
            patch.setattr(segments.fcntl, "fcntl", old_control)
            made = create(SIZE)
        check(made.fd, SIZE, LIMIT)
        made.close()

    @pytest.mark.parametrize("step", ["posix_fallocate", "mmap"])
    def test_where_memory_is_short_it_fails_and_leaves_no_descriptor(
        self, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        def full(*args: object) -> None:
            raise OSError(28, "No space left on device")

        with nothing_left_open(), monkeypatch.context() as patch:
            patch.setattr(segments.os if step != "mmap" else segments.mmap, step, full)
            with pytest.raises(OSError, match="No space"):
                create(SIZE)

    def test_closed_twice_it_closes_no_descriptor_of_others(self) -> None:
        made = create(SIZE)
        number = made.fd
        view = made.view
        made.close()
        assert not is_open(number)
        other = os.open("/dev/null", os.O_RDONLY)
        made.close()
        assert is_open(other)
        os.close(other)
        view[0] = 1  # a view outlives it


class TestReceived:
    def test_it_is_made_close_on_exec(self) -> None:
        fd = memory()
        os.set_inheritable(fd, True)
        check(fd, SIZE, LIMIT)
        assert not os.get_inheritable(fd)
        os.close(fd)

    @pytest.mark.parametrize("seals", [0, SEALS & ~1 & ~2, 0x2, 0x4, 0x8])
    def test_one_that_is_not_sealed_is_refused(self, seals: int) -> None:
        with refused(memory(seals=seals), "may still shrink or grow"):
            pass

    def test_a_pipe_is_refused(self) -> None:
        reader, writer = os.pipe()
        os.close(writer)
        with refused(reader, "not memory"):
            pass

    def test_a_socket_is_refused(self) -> None:
        with refused(socket.socket(socket.AF_UNIX).detach(), "not memory"):
            pass

    def test_a_directory_is_refused(self, tmp_path: Path) -> None:
        with refused(os.open(tmp_path, os.O_RDONLY), "not memory"):
            pass

    def test_a_device_is_refused(self) -> None:
        with refused(os.open("/dev/zero", os.O_RDWR), "not memory"):
            pass

    @pytest.mark.parametrize("folder", ["/dev/shm", None])
    def test_a_file_is_refused(self, folder: str | None) -> None:
        if folder and not os.access(folder, os.W_OK):
            pytest.skip("there is no such file system here")
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x" * SIZE)
            file.flush()
            fd = os.dup(file.fileno())
        with refused(fd, "no seals|may still shrink"):
            pass

    def test_a_path_without_a_right_to_read_is_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "file"
        file.write_bytes(b"x" * SIZE)
        with refused(os.open(file, os.O_PATH), "no seals|whole pages"):
            pass

    def test_one_that_is_only_for_writing_is_refused_when_it_is_mapped(self) -> None:
        fd = memory()
        for_writing = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY)
        check(for_writing, SIZE, LIMIT)
        with pytest.raises(SegmentRefusedError, match="cannot be read"):
            map_fd(for_writing, SIZE)
        os.close(for_writing)
        os.close(fd)

    def test_a_huge_file_without_memory_is_refused(self) -> None:
        with refused(memory(1 << 29, is_filled=False), "have memory", 1 << 29):
            pass

    def test_one_over_the_limit_is_refused(self) -> None:
        with refused(memory(1 << 40, is_filled=False), "are accepted", 1 << 40):
            pass

    @pytest.mark.parametrize("size", [0, 1, SIZE - 1, SIZE + 1, SIZE * 2, -SIZE])
    def test_one_of_another_size_than_announced_is_refused(self, size: int) -> None:
        with refused(memory(), "were announced", size):
            pass

    def test_one_that_ends_within_a_page_is_refused(self) -> None:
        with refused(memory(SIZE - 1), "whole pages", SIZE - 1):
            pass

    def test_an_empty_one_is_refused(self) -> None:
        with refused(memory(0, is_filled=False), "are accepted", 0):
            pass

    def test_one_of_huge_pages_is_refused(self) -> None:
        size = 1 << 21
        try:
            fd = memory(size, is_filled=False, flags=os.MFD_HUGETLB)
        except OSError as error:
            pytest.skip(f"there are no huge pages: {error}")
        with refused(fd, "whole pages|have memory", size):
            pass

    @pytest.mark.parametrize("fd", [-1, 10**6])
    def test_a_descriptor_that_is_not_open_is_refused(self, fd: int) -> None:
        with pytest.raises(SegmentRefusedError, match="not open"):
            check(fd, SIZE, LIMIT)
