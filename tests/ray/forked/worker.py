"""What a raylet starts in place of Ray's `default_worker.py`: asks the server for a fork, and ends.

The raylet knows the worker by the id in its arguments, and its process by what the worker tells it.
Imports only what starts quickly; run as a script, so that no package is imported for it either.
"""

from __future__ import annotations

import array
import json
import os
import runpy
import socket
import sys
import time

SERVER = "SERVE_GRPC_TESTS_FORK_SERVER"
"""The variable with the path of the server's socket."""
MAY_DIFFER = frozenset({"SPT_NOENV", "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"})
"""Variables that are read later than at import."""
OF_THE_PACKAGE = "SERVE_GRPC_"
"""What begins like this is read when the package is imported, after the fork."""
PATIENCE_S = 60.0


def default_worker() -> str:
    """Ray's own, which it stands for."""
    from importlib.util import find_spec

    (place,) = find_spec("ray").submodule_search_locations
    return os.path.join(place, "_private", "workers", "default_worker.py")


def connected(path: str) -> socket.socket:
    """To the server, which begins to listen when it has imported all."""
    deadline_s = time.monotonic() + PATIENCE_S
    server = socket.socket(socket.AF_UNIX)
    while True:
        try:
            server.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.02)
        else:
            return server


def is_forked(path: str) -> bool:
    """Ask for a fork with these arguments; whether there is one."""
    told = json.dumps({"argv": sys.argv, "environ": dict(os.environ), "cwd": os.getcwd()}).encode()
    fds = array.array("i", [0, 1, 2])
    with connected(path) as server:
        server.sendmsg(
            [len(told).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
        )
        server.sendall(told)
        return server.recv(1) == b"y"


if __name__ == "__main__":
    if not is_forked(os.environ[SERVER]):
        sys.argv[0] = default_worker()
        sys.path[0] = os.path.dirname(sys.argv[0])
        runpy.run_path(sys.argv[0], run_name="__main__")
