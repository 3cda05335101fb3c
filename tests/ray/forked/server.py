"""Imports Ray and Ray Serve once, and forks a worker for each that asks.

    python -m tests.ray.forked.server PATH ROOM

It listens at PATH, and ends when its stdin does: with the process that started Ray. ROOM is there
for the title that Ray gives a worker, which goes where the arguments were.
"""

from __future__ import annotations

import array
import contextlib
import gc
import json
import os
import runpy
import select
import shutil
import signal
import socket
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import ray._private.workers
import ray.serve._private.controller
import ray.serve._private.proxy
import ray.serve._private.replica
from ray._raylet import JobID, TaskID

from tests.ray.forked.worker import MAY_DIFFER, OF_THE_PACKAGE

WORKER = Path(ray._private.workers.__file__).parent / "default_worker.py"


IDS, THREADS = 20_000, 256
"""More than a worker draws by one thread, and more threads than draw in it."""


def draw_ids() -> None:
    """Draw the random ids that the fork made before will draw, so that the next one draws others.

    Each thread of Ray has a generator of its own (`absl::BitGen`). After a fork both processes go
    on with the same state, also with the one that new threads begin with. Two workers with the same
    ids take each other's answers.
    """
    for _ in range(IDS):
        TaskID.for_fake_task(JobID.from_int(1))
    for _ in range(THREADS):
        thread = threading.Thread(target=TaskID.for_fake_task, args=(JobID.from_int(1),))
        thread.start()
        thread.join()


def asked(peer: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What a worker wants to be, and its stdin, stdout and stderr."""
    fds = array.array("i")
    head, ancillary, _, _ = peer.recvmsg(4, socket.CMSG_SPACE(3 * fds.itemsize))
    for _, _, data in ancillary:
        fds.frombytes(data)
    size, told = int.from_bytes(head, "big"), b""
    while len(told) < size:
        if not (more := peer.recv(size - len(told))):
            raise EOFError("a worker ended while it asked for a fork")
        told += more
    return json.loads(told), list(fds)


def is_like_this(environ: dict[str, str]) -> bool:
    """Whether what was imported here is what it would import with these variables."""
    differing = {name for name, _ in environ.items() ^ os.environ.items()} - MAY_DIFFER
    return not any(
        environ.get(name) or os.environ.get(name)
        for name in differing
        if not name.startswith(OF_THE_PACKAGE)
    )


def become(wanted: dict[str, Any], fds: list[int]) -> None:
    """Be that worker, in the process that was forked for it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    os.environ.update(wanted["environ"])
    os.chdir(wanted["cwd"])
    sys.argv = [str(WORKER), *wanted["argv"][1:]]
    sys.path[0] = str(WORKER.parent)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # Python's own is seeded at a fork
    runpy.run_path(str(WORKER), run_name="__main__")


def serve(listener: socket.socket) -> None:
    """Until stdin ends."""
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        peer, _ = listener.accept()
        with peer:
            try:
                wanted, fds = asked(peer)
            except EOFError:
                continue  # it was killed as it asked
            is_mine = is_like_this(wanted["environ"])
            if is_mine:
                draw_ids()
            if is_mine and os.fork() == 0:
                listener.close()
                peer.close()
                become(wanted, fds)
                sys.exit()
            for fd in fds:
                os.close(fd)
            with contextlib.suppress(BrokenPipeError):  # or as it was answered
                peer.sendall(b"y" if is_mine else b"n")


def main(path: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # workers that end leave no zombies
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its end is told by stdin
    # The threads are those of numpy's library, which starts them again after a fork.
    warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
    gc.collect()
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(128)
        serve(listener)
    shutil.rmtree(Path(path).parent)


if __name__ == "__main__":
    main(sys.argv[1])
