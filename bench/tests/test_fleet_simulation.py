"""Small fleets keep the shape of what is shown of large ones, and each way of choosing runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.fleet_simulation.__main__ import main
from bench.fleet_simulation.fleet import simulate
from bench.fleet_simulation.measured import Measured
from bench.fleet_simulation.policies import POLICIES
from bench.fleet_simulation.scenarios import SCENARIOS, Scenario

SIZE = 10
SMALL = Scenario("small", callers=100, replicas=100, calls=15_000)


def small(policy: str, **life: object) -> Measured:
    run = simulate(replace(SMALL, **life), policy, size=SIZE)  # type: ignore[arg-type]
    assert run.failed == 0 or life.get("failing")
    return run


def test_sessions_are_few_and_even_and_calls_wait_no_longer() -> None:
    whole, ours = small("all to all"), small("ours")
    assert whole.mean_sessions > 70
    assert ours.mean_sessions <= 1.1 * SIZE
    assert ours.most_sessions <= 2.5 * ours.mean_sessions
    assert ours.busiest <= 1.25 * max(1.0, whole.busiest / 1.1)
    assert ours.wait_ms(0.99) <= 1.15 * max(1.0, whole.wait_ms(0.99))


def test_a_caller_with_half_of_the_load_has_sessions_to_all() -> None:
    ours = small("ours", first_share=0.5)
    assert ours.mean_sessions <= SIZE + 2
    assert ours.busiest <= 1.3


def test_when_one_leaves_few_sessions_move() -> None:
    ours = small("ours", leaves=1)
    assert ours.opened + ours.closed <= 3 * 2 * SIZE


def test_while_all_are_busy_calls_find_whatever_room_there_is() -> None:
    whole, ours = small("all to all", utilisation=0.95), small("ours", utilisation=0.95)
    assert sum(ours.loads) >= 0.97 * sum(whole.loads)


@pytest.mark.parametrize("policy", POLICIES)
def test_replicas_come_and_go_under_any_policy(policy: str) -> None:
    run = small(policy, replaced=10, calls=10_000)
    assert run.calls > 5000
    assert run.waiting < 100


def test_a_failing_replica_gets_hardly_any_calls() -> None:
    run = small("ours", failing=1)
    assert run.failed < 0.03 * run.calls


def test_the_command_prints_a_table_and_draws_a_picture(tmp_path: Path) -> None:
    picture = tmp_path / "fleet.svg"
    arguments = ["--only", "even", "--smaller", "50", "--calls", "2000", "--picture", str(picture)]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "even: 20 callers" in result.output
    assert all(policy in result.output for policy in POLICIES)
    assert picture.read_text().count("<svg") == 1
    assert CliRunner().invoke(main, ["--only", "no such life"]).exit_code == 2


def test_each_life_has_a_name_of_its_own() -> None:
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)
