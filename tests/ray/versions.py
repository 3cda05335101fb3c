"""The tests of a real Serve on the newest patch of each supported minor version of Ray.

    python -m tests.ray.versions [2.57 ...]

Each version has a virtual environment of its own, `.venv-ray/2.57`, made when it is first needed
and brought up to date by pip at each run. The versions take their turns one after another. At the
end stands a table, and status 1 if a test failed or a version could not be installed.
"""

from __future__ import annotations

import sys

import click
from rich.console import Console

from serve_grpc._serve.versions import NEWEST, OLDEST
from tests.environments import ROOT, Environment, Outcome, table_of

__all__ = ["SUITE", "VERSIONS", "main"]

ENVIRONMENTS = ROOT / ".venv-ray"
VERSIONS = tuple(f"{OLDEST[0]}.{minor}" for minor in range(OLDEST[1], NEWEST[1] + 1))

SUITE = (
    "tests/unit/test_private_names.py",
    "tests/unit/test_handle_options.py",
    "tests/unit/test_call_signatures.py",
    "tests/unit/test_deferred_lists.py",  # Serve's real router, without a cluster
    "tests/unit/test_replica_lists.py",
    "tests/ray/test_serve_callers.py",  # unary calls and streams
    "tests/ray/test_serve_errors.py",
    "tests/ray/test_serve_user_errors.py",
    "tests/ray/test_serve_giving_up.py",  # deadlines, cancelling, flow control
    "tests/ray/test_serve_admission.py",
    "tests/ray/test_serve_accounting.py",
    "tests/ray/test_serve_composition.py",
    "tests/ray/test_serve_kinds_of_code.py",  # enable, FastAPI, config file
    "tests/ray/test_serve_transport_choice.py",  # fallback, local testing mode
    "tests/ray/test_serve_replicas.py",  # death, drain
    "tests/ray/test_serve_local_lane.py",
    "tests/ray/test_serve_large_values.py",
    "tests/ray/test_serve_inputs.py",  # streams as arguments
    "tests/ray/test_serve_inputs_ends.py",
    "tests/ray/test_serve_inputs_choosing.py",
    "tests/ray/test_serve_inputs_observed.py",
    "tests/ray/test_serve_input_faults.py",
    "tests/ray/test_serve_pinning.py",
    "tests/ray/test_serve_fleet.py",  # who looks up which actors
    "tests/ray/test_ray_benchmarks.py",
)
"""What touches each of Ray's private names; about a minute and a half for a version."""
LIMIT_S = 1800.0  # for one version's tests: ends a run that hangs


def _try_version(version: str, console: Console) -> Outcome:
    environment = Environment(ENVIRONMENTS / version)
    console.rule(f"Ray {version}")
    console.print("installing ...")
    if not environment.install(f"ray[serve]=={version}.*"):
        return Outcome("–", problem="could not be installed")
    ray = environment.version_of("ray")
    console.print(f"testing Ray {ray} ...")
    return environment.test(ray, SUITE, limit_s=LIMIT_S)


@click.command(help=__doc__)
@click.argument("versions", nargs=-1, type=click.Choice(VERSIONS))
def main(versions: tuple[str, ...]) -> None:
    console = Console(highlight=False)
    outcomes = {version: _try_version(version, console) for version in versions or VERSIONS}
    console.print(table_of("serve_grpc on each supported Ray", ("Ray", "patch"), outcomes))
    sys.exit(not all(outcome.is_good for outcome in outcomes.values()))


if __name__ == "__main__":
    main()
