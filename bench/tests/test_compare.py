"""Two runs compared: a change is found, noise is not, and what cannot be compared is said."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from bench.results import noise
from bench.results.run import Run, Sample
from bench.show.compare import print_comparison
from bench.tests.runs import OURS, OVER_GRPC, SERVES, new_run


def compare(old: Run, new: Run) -> tuple[bool, str]:
    """What it returned and printed, without line breaks inside of sentences."""
    text = io.StringIO()
    is_worse = print_comparison(old, new, Console(file=text, width=200))
    return is_worse, text.getvalue()


@pytest.fixture(scope="module")
def old() -> Run:
    return new_run(noise=0.03)


def test_noise_of_three_percent_is_ignored(old: Run) -> None:
    for seed in range(2, 8):
        is_worse, text = compare(old, new_run(seed=seed, noise=0.03))
        assert not is_worse
        assert f"nothing changed beyond noise in {len(old.cases)} cases" in text
        assert "warning" not in text


def test_the_rule_is_printed(old: Run) -> None:
    assert "differ by more than 10%" in compare(old, old)[1]


def test_a_loss_of_thirty_percent_is_found_in_numbers_and_ratios(old: Run) -> None:
    is_worse, text = compare(old, new_run(seed=2, noise=0.03, factor={OURS: 0.7}))
    assert is_worse
    ratios, absolute = text.split("Absolute numbers")
    assert "Ratios, paired by round" in ratios
    for part in (ratios, absolute):
        assert "replicas/default/8" in part
        assert "worse" in part
        assert "better" not in part


def test_a_gain_is_no_loss(old: Run) -> None:
    is_worse, text = compare(old, new_run(seed=2, noise=0.03, factor={OURS: 1.4}))
    assert not is_worse
    assert "better" in text


def test_a_slower_machine_changes_numbers_but_no_ratio(old: Run) -> None:
    slower = dict.fromkeys((*SERVES, OURS, OVER_GRPC, f"{OURS} (4 callers)"), 0.6)
    new = new_run(seed=2, noise=0.03, factor=slower)
    _, text = compare(old, dataclasses.replace(new, machine={**new.machine, "cpu": "another"}))
    assert "Ratios, paired by round" not in text
    assert "Absolute numbers" in text
    assert "machine differ: cpu Example & Co -> another" in text


def test_what_others_lose_does_not_count(old: Run) -> None:
    new = new_run(seed=2, noise=0.03, factor={"by reference": 0.6})
    is_worse, text = compare(old, new)
    assert not is_worse
    assert "by reference" in text


def test_a_loss_over_grpc_alone_counts(old: Run) -> None:
    is_worse, text = compare(old, new_run(seed=2, noise=0.03, factor={OVER_GRPC: 0.6}))
    assert is_worse
    assert OVER_GRPC in text


def test_a_window_that_fails_now_counts(old: Run) -> None:
    new = new_run(noise=0.03)
    new.cases[0].samples = [
        Sample(s.contender, s.round, error="TimeoutError: late") if s.contender == OURS else s
        for s in new.cases[0].samples
    ]
    is_worse, text = compare(old, new)
    assert is_worse
    assert f"fails now: {new.cases[0].case.id}, {OURS}: TimeoutError: late" in text


def test_what_makes_runs_hard_to_compare_is_said(old: Run) -> None:
    new = new_run(noise=0.03, rounds=3, is_quick=True, versions={"python": "3.11.7", "ray": "3.0"})
    first = new.cases[0]
    first.case = dataclasses.replace(first.case, workload={**first.case.workload, "size": 7})
    new.cases[1].case = dataclasses.replace(new.cases[1].case, id="payload/new")
    _, text = compare(old, new)
    for words in (
        "versions differ: ray 2.60.0 -> 3.0",
        "quick plan",
        "only in the old run: payload/default/100-bytes",
        "only in the new run: payload/new",
        f"{first.case.id} is another workload",
        "the old run has 5 rounds, the new one 3",
    ):
        assert words in text


def test_growth_and_costs_are_compared(old: Run) -> None:
    rows = [{**row, "value": row["value"] * 2} for row in old.growth]
    is_worse, text = compare(old, dataclasses.replace(old, growth=rows))
    assert is_worse
    assert "pick, 10,000" in text
    assert "codec, replica: encode, 32 requests" in text


# ------------------------------------------------------------ the rule


def test_few_rounds_need_a_large_change() -> None:
    change = noise.compare([100.0], [70.0])
    assert change is not None
    assert not change.is_beyond_noise
    change = noise.compare([100.0, 101.0], [50.0, 52.0])
    assert change is not None
    assert change.is_beyond_noise


def test_one_slow_round_neither_makes_a_change_nor_hides_one() -> None:
    quiet = [100.0, 101.0, 99.0, 100.0, 102.0]
    spell = [100.0, 99.0, 101.0, 100.0, 20.0]
    change = noise.compare(quiet, spell)
    assert change is not None
    assert not change.is_beyond_noise
    change = noise.compare([*quiet[:4], 20.0], [value * 1.3 for value in quiet])
    assert change is not None
    assert change.is_beyond_noise


def test_rounds_that_agree_by_luck_are_held_to_the_usual_error() -> None:
    old, new = [100.0] * 5, [120.0] * 5
    change = noise.compare(old, new)
    assert change is not None
    assert change.is_beyond_noise
    change = noise.compare(old, new, usual=0.1)
    assert change is not None
    assert not change.is_beyond_noise
    assert noise.usual_error([([90.0, 100.0, 110.0], [90.0, 100.0, 110.0])]) == pytest.approx(
        0.1517, abs=0.001
    )


def test_nothing_is_compared_with_nothing() -> None:
    assert noise.compare([], [1.0]) is None
    assert noise.compare([0.0], [1.0]) is None
    assert noise.usual_error([([1.0], [2.0])]) == 0
