"""Serve's variables for a process that runs it behind a proxy, and what it leaves behind.

Serve's HAProxy keeps its files, sockets and ports in one place per machine unless it is told
otherwise; here each process gets its own, so that other Serve instances do not matter. No Ray here.
"""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import psutil

from bench.plan.http import Proxy
from bench.results.run import Flags

__all__ = ["HOST", "end_haproxy", "free_port", "variables"]

HOST = "127.0.0.1"
KILL_S = 5.0
HAPROXY = "RAY_SERVE_HAPROXY_"


def variables(proxy: Proxy, flags: Flags, directory: Path) -> dict[str, str]:
    """What the environment of such a process has of Serve's; all else stays at its default.

    Args:
        directory: For HAProxy's files and sockets.
    """
    found = {}
    if flags == "throughput":
        found["RAY_SERVE_THROUGHPUT_OPTIMIZED"] = "1"
    if proxy == "haproxy":
        found["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
        found[f"{HAPROXY}CONFIG_FILE_LOC"] = str(directory / "haproxy.cfg")
        found[f"{HAPROXY}SOCKET_PATH"] = str(directory / "admin.sock")
        found[f"{HAPROXY}METRICS_SOCKET_PATH"] = str(directory / "metrics.sock")
        found[f"{HAPROXY}SERVER_STATE_BASE"] = str(directory)
        found[f"{HAPROXY}SERVER_STATE_FILE"] = str(directory / "server-state")
        found[f"{HAPROXY}METRICS_PORT"] = str(free_port())
        found[f"{HAPROXY}STATS_PORT"] = str(free_port())
    return found


def end_haproxy(directory: Path) -> None:
    """Kill what runs with a configuration from `directory`.

    Ray ends the actor that started HAProxy, and leaves HAProxy itself running.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it ended, or is not ours to look at
            if any(word.startswith(f"{directory}/") for word in process.cmdline()):
                process.kill()
                found.append(process)
    psutil.wait_procs(found, timeout=KILL_S)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])
