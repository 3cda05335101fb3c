"""Where sockets of the local lane lie, who may use the place, and what is removed from it."""

from __future__ import annotations

import errno
import os
import socket
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serve_grpc.carriers.local import framing, paths
from serve_grpc.carriers.local.paths import (
    MAX_SOCKET_PATH_BYTES,
    is_understood,
    open_directory,
    published,
    remove_leftovers,
)


@pytest.fixture
def session() -> Iterator[Path]:
    """Ray's directory; short, for pytest's own may be too long for sockets."""
    with tempfile.TemporaryDirectory(prefix="s") as directory:
        yield Path(directory)


@pytest.fixture
def listeners() -> Iterator[list[socket.socket]]:
    made: list[socket.socket] = []
    yield made
    for listener in made:
        listener.close()


@pytest.fixture
def listen(listeners: list[socket.socket]) -> Callable[[str], None]:
    def listen(path: str) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listeners.append(listener)
        listener.bind(path)
        listener.listen(1)

    return listen


def names(directory: str) -> set[str]:
    return set(os.listdir(directory))


# ------------------------------------------------------------ the directory


def test_the_directory_is_rays_and_ours_alone(session: Path) -> None:
    directory = open_directory(str(session))
    assert Path(directory).parent == session
    found = os.lstat(directory)
    assert stat.S_IMODE(found.st_mode) == 0o700
    assert found.st_uid == os.geteuid()
    assert open_directory(str(session)) == directory  # the next replica of the node


def test_where_rays_directory_is_too_long_it_is_a_private_one_of_its_own(
    session: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(session))
    long, other = str(session / ("x" * 90)), str(session / ("y" * 90))
    directory = open_directory(long)
    assert Path(directory).parent == session
    assert stat.S_IMODE(os.lstat(directory).st_mode) == 0o700
    assert open_directory(long) == directory
    assert open_directory(other) != directory  # another cluster on this machine


@pytest.mark.parametrize("length", range(50, 90))
def test_a_path_of_a_socket_always_fits(
    session: Path,
    monkeypatch: pytest.MonkeyPatch,
    listen: Callable[[str], None],
    length: int,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(session))
    within = session / ("x" * (length - len(str(session)) - 1))
    within.mkdir()
    path = published(open_directory(str(within)), listen)
    assert len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(path)


def test_without_room_for_a_path_there_is_no_directory(
    session: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(session / ("x" * 90)))
    with pytest.raises(OSError, match="no path of a socket fits"):
        open_directory(str(session / ("y" * 90)))


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o755, 0o770, 0o777])
def test_a_directory_that_others_may_use_is_refused(session: Path, mode: int) -> None:
    directory = open_directory(str(session))
    os.chmod(directory, mode)
    with pytest.raises(PermissionError, match=f"others may use .*{mode & 0o077:03o}"):
        open_directory(str(session))


def test_a_link_is_refused_wherever_it_leads(session: Path) -> None:
    directory = open_directory(str(session))
    os.rename(directory, session / "moved")
    os.symlink(session / "moved", directory)
    with pytest.raises(NotADirectoryError, match="no directory"):
        open_directory(str(session))


def test_a_file_in_its_place_is_refused(session: Path) -> None:
    directory = Path(open_directory(str(session)))
    directory.rmdir()
    directory.touch()
    with pytest.raises(NotADirectoryError, match="no directory"):
        open_directory(str(session))


def test_a_directory_of_somebody_else_is_refused(
    session: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = os.geteuid()
    found = os.lstat(open_directory(str(session)))
    strangers = os.stat_result((*found[:4], uid + 1, *found[5:]))
    monkeypatch.setattr(paths.os, "lstat", lambda _: strangers)
    with pytest.raises(PermissionError, match=f"belongs to user {uid + 1}, not to {uid}"):
        open_directory(str(session))


def test_each_user_has_a_directory(session: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = open_directory(str(session))
    monkeypatch.setattr(paths.os, "geteuid", lambda: 12345)
    # Made by us, and so it is not the other user's.
    with pytest.raises(PermissionError, match="not to 12345"):
        open_directory(str(session))
    assert len(list(session.iterdir())) == 2
    assert os.path.isdir(ours)


# ------------------------------------------------------------ sockets


def test_a_socket_has_its_name_when_it_listens(
    session: Path, listen: Callable[[str], None]
) -> None:
    directory = open_directory(str(session))
    seen: list[set[str]] = []

    def listen_and_look(path: str) -> None:
        listen(path)
        seen.append(names(directory))

    path = published(directory, listen_and_look)
    assert names(directory) == {os.path.basename(path)}
    assert seen[0].isdisjoint(names(directory))
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(path)
    assert published(directory, listen) != path


def test_a_socket_that_cannot_listen_is_not_published(session: Path) -> None:
    def listen(path: str) -> None:
        raise OSError("no sockets here")

    directory = open_directory(str(session))
    with pytest.raises(OSError, match="no sockets here"):
        published(directory, listen)
    assert names(directory) == set()


# ------------------------------------------------------------ what is left over


def test_the_socket_of_a_dead_replica_is_removed_and_that_of_a_living_one_is_not(
    session: Path, listen: Callable[[str], None], listeners: list[socket.socket]
) -> None:
    directory = open_directory(str(session))
    dead, alive = published(directory, listen), published(directory, listen)
    listeners[0].close()
    assert remove_leftovers(directory) == 1
    assert names(directory) == {os.path.basename(alive)}
    assert not os.path.exists(dead)
    assert remove_leftovers(directory) == 0


def test_a_replica_that_hangs_with_a_full_queue_is_not_taken_for_dead(
    session: Path, listen: Callable[[str], None]
) -> None:
    directory = open_directory(str(session))
    path = published(directory, listen)
    callers = [socket.socket(socket.AF_UNIX) for _ in range(4)]
    for caller in callers:
        caller.setblocking(False)
    assert errno.EAGAIN in [caller.connect_ex(path) for caller in callers]
    assert remove_leftovers(directory) == 0
    for caller in callers:
        caller.close()


def test_what_is_not_ours_stays(session: Path, listeners: list[socket.socket]) -> None:
    directory = open_directory(str(session))
    name = "replica-0123456789a%s.v1"
    (Path(directory) / (name % "b")).touch()  # a file under a name of ours
    os.symlink(os.path.join(directory, "nowhere"), os.path.join(directory, name % "c"))
    os.mkdir(os.path.join(directory, name % "d"))
    for strange in ("replica-1.v1", "replica-0123456789ab.sock", "other", name % "X"):
        listeners.append(socket.socket(socket.AF_UNIX))
        listeners[-1].bind(os.path.join(directory, strange))  # refuses connections
    before = names(directory)
    assert remove_leftovers(directory) == 0
    assert names(directory) == before


def test_a_name_tells_the_version_that_its_replica_speaks(
    session: Path, listen: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = open_directory(str(session))
    ours = published(directory, listen)
    with monkeypatch.context() as patch:
        patch.setattr(framing, "VERSION", framing.VERSION + 1)
        newer = published(directory, listen)
        assert (is_understood(ours), is_understood(newer)) == (False, True)
    assert (is_understood(ours), is_understood(newer)) == (True, False)
    assert not is_understood(os.path.join(directory, "socket"))
    assert not is_understood(ours + paths.NOT_YET)


def test_what_is_left_of_other_versions_is_removed_as_well(
    session: Path, listeners: list[socket.socket]
) -> None:
    directory = open_directory(str(session))
    for version in (1, framing.VERSION + 1, 9999):
        listeners.append(socket.socket(socket.AF_UNIX))
        listeners[-1].bind(os.path.join(directory, f"replica-0123456789ab.v{version}"))
    count = len(names(directory))
    assert remove_leftovers(directory) == count
    assert names(directory) == set()


def test_a_socket_that_may_be_about_to_listen_stays_for_a_while(
    session: Path, listeners: list[socket.socket]
) -> None:
    directory = open_directory(str(session))
    path = os.path.join(directory, "replica-0123456789ab.v1" + paths.NOT_YET)
    listeners.append(socket.socket(socket.AF_UNIX))
    listeners[-1].bind(path)
    assert remove_leftovers(directory) == 0
    old = os.lstat(path).st_mtime - paths.ABANDONED_S - 1
    os.utime(path, (old, old))
    assert remove_leftovers(directory) == 1
    assert names(directory) == set()


def test_replicas_that_start_together_do_each_other_no_harm(session: Path) -> None:
    together = threading.Barrier(8)
    started: list[tuple[str, socket.socket]] = []
    errors: list[BaseException] = []

    def start() -> None:
        try:
            together.wait(10)
            for _ in range(20):
                directory = open_directory(str(session))
                remove_leftovers(directory)
                listener = socket.socket(socket.AF_UNIX)

                def listen(path: str, listener: socket.socket = listener) -> None:
                    listener.bind(path)
                    listener.listen()

                path = published(directory, listen)
                started.append((path, listener))
                killed = socket.socket(socket.AF_UNIX)

                def listen_and_die(path: str, killed: socket.socket = killed) -> None:
                    killed.bind(path)
                    killed.listen()
                    killed.close()

                published(directory, listen_and_die)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []
    directory = open_directory(str(session))
    remove_leftovers(directory)
    assert {os.path.basename(path) for path, _ in started} == names(directory)
    assert len(started) == 8 * 20
    for path, listener in started:
        with socket.socket(socket.AF_UNIX) as caller:
            # Full of those who looked whether it lives: nobody accepts here.
            caller.setblocking(False)
            assert caller.connect_ex(path) in (0, errno.EAGAIN)
        listener.close()
