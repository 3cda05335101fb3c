"""The tests with the oldest and with the newest dependencies that pyproject.toml allows.

    python -m tests.dependencies [oldest] [newest]

Each end has a virtual environment of its own, `.venv-deps/oldest`, brought up to date by pip at
each run. The oldest are the floors of the ranges, Ray's included; the newest are what pip finds
today, and an end at which pip holds one of them back does not count. At the end stands a table, and
status 1 if a test failed or an end could not be installed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import click
from packaging.requirements import Requirement
from packaging.version import Version
from rich.console import Console

from tests.environments import PIP, ROOT, Environment, Outcome, table_of

__all__ = ["ENDS", "SUITE", "floors", "held_back", "main", "ranges"]

ENVIRONMENTS = ROOT / ".venv-deps"
ENDS = ("oldest", "newest")

SUITE = (
    # What needs no Ray: codecs, sessions, serializers, and gRPC between processes and over TLS.
    "tests/test_dependencies.py",
    "tests/unit",
    "tests/property",
    "tests/behaviour",
    "tests/security/test_limits_connections.py",
    "tests/security/test_limits_messages.py",
    "tests/security/test_limits_nesting.py",  # how deep msgpack, orjson and protobuf read
    "tests/security/test_limits_protocol.py",
    "tests/security/test_fuzz_targets.py",
    # On a real Serve, what a library's own version decides:
    "tests/security/test_tls_attacks.py",  # grpcio, with Ray's certificates
    "tests/security/test_doors.py",
    "tests/security/test_allowed_serializers.py",
    "tests/peer",  # the plain door: stubs, health and reflection, in protobuf's own words
    "tests/ray/test_serve_callers.py",  # unary calls and streams under each serializer
    "tests/ray/test_serve_errors.py",
    "tests/ray/test_serve_user_errors.py",  # cloudpickle, of which Ray brings a copy
    "tests/ray/compat/test_compat_differences.py",  # NumPy, pandas and pydantic over each transport
    "tests/ray/test_serve_giving_up.py",  # grpcio: deadlines, cancelling, flow control
    "tests/ray/test_serve_replicas.py",  # grpcio: death, drain
    "tests/ray/test_serve_metrics.py",
)
"""Left out is what a library's version does not reach: routing, accounting, Serve's flags."""
LIMIT_S = 3600.0  # for one end's tests: ends a run that hangs


@cache
def ranges() -> dict[str, Requirement]:
    """What pyproject.toml asks for: the dependencies, and NumPy, which users send most of all."""
    text = (ROOT / "pyproject.toml").read_text()
    lists = re.findall(r"^(?:dependencies|dev) = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    depends, dev = (
        [Requirement(found) for found in re.findall(r'"([^"]+)"', part)] for part in lists
    )
    numpy = [
        item for item in dev if item.name == "numpy" and item.marker and item.marker.evaluate()
    ]
    return {item.name: item for item in (*depends, *numpy)}


def floors() -> dict[str, Version]:
    """The lowest version of each that may be installed."""
    return {
        name: Version(specifier.version)
        for name, item in ranges().items()
        for specifier in item.specifier
        if specifier.operator == ">="
    }


def held_back(outdated: list[dict[str, str]]) -> list[str]:
    """Which of the ranges' packages are older than their range allows.

    Args:
        outdated: What `pip list --outdated --format json` says.
    """
    return [
        f"{found['name']} {found['version']} of {found['latest_version']}"
        for found in outdated
        if (wanted := ranges().get(found["name"]))
        and wanted.specifier.contains(found["latest_version"])
    ]


def _outdated(python: Path) -> list[dict[str, str]]:
    command = [python, *PIP, "list", "--outdated", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: list[dict[str, str]] = json.loads(done.stdout)
    return found


def _wanted(end: str) -> list[str]:
    if end == "newest":
        return []
    # Ray's floor names a minor version, of which the newest patch counts.
    return [
        f"{name}=={floor}.*" if name == "ray" else f"{name}=={floor}"
        for name, floor in floors().items()
    ]


def _try(end: str, console: Console) -> Outcome:
    environment = Environment(ENVIRONMENTS / end)
    console.rule(f"the {end} dependencies")
    console.print("installing ...")
    if not environment.install(*_wanted(end)):
        return Outcome("–", problem="could not be installed")
    versions = ", ".join(f"{name} {environment.version_of(name)}" for name in ranges())
    if end == "newest" and (names := held_back(_outdated(environment.python))):
        return Outcome(versions, problem=f"held back: {', '.join(names)}")
    console.print(f"testing {versions} ...")
    return environment.test(versions, SUITE, limit_s=LIMIT_S)


@click.command(help=__doc__)
@click.argument("ends", nargs=-1, type=click.Choice(ENDS))
def main(ends: tuple[str, ...]) -> None:
    console = Console(highlight=False)
    outcomes = {end: _try(end, console) for end in ends or ENDS}
    title = "serve_grpc with the oldest and the newest dependencies"
    console.print(table_of(title, ("end", "versions"), outcomes))
    sys.exit(not all(outcome.is_good for outcome in outcomes.values()))


if __name__ == "__main__":
    main()
