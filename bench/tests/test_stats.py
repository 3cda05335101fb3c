"""The benchmark's numbers: medians, ratios paired by round, targets, samples, the plan."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from bench.load.payloads import Kind, checker, make
from bench.load.window import Counted, sample_of
from bench.plan.contenders import OURS, OVER_GRPC, Contender, over_grpc, parse
from bench.plan.plans import Plan, full_plan, quick_plan
from bench.results import stats
from bench.results.run import Case, CaseResult, Sample, Target
from bench.workers import groups
from bench.workers.protocol import Order

NAMES = ("by reference", "serve: pickle", OURS)


def result(*targets: Target, **calls_per_s: list[float | None]) -> CaseResult:
    """A case with these calls/s by round: of `ref`, `serve` and `ours`."""
    case = Case("c/default/1", "c", "default", "", 1, {}, NAMES, targets)
    names = dict(zip(("ref", "serve", "ours"), NAMES, strict=True))
    samples = [
        Sample(names[key], number, calls_per_s=value, error=None if value else "broken")
        for key, values in calls_per_s.items()
        for number, value in enumerate(values)
    ]
    return CaseResult(case, samples)


def target(**bounds: float) -> Target:
    return Target("calls_per_s", OURS, NAMES[:2], "faster", **bounds)


# ------------------------------------------------------------ medians and ratios


def test_a_ratio_is_formed_inside_each_round() -> None:
    # A slow spell in round 1 meets both: the ratio is 10 all the same.
    found = result(serve=[100, 10, 100], ours=[1000, 100, 1000])
    assert stats.paired_ratio(found, OURS, "serve: pickle", "calls_per_s") == stats.Ratio(
        10, 10, 10, 3
    )


def test_the_median_of_ratios_is_not_the_ratio_of_medians() -> None:
    found = result(serve=[1, 2, 4], ours=[10, 4, 4])
    ratio = stats.paired_ratio(found, OURS, "serve: pickle", "calls_per_s")
    assert ratio == stats.Ratio(2, 1, 10, 3)


def test_rounds_that_only_one_of_them_has_do_not_count() -> None:
    found = result(serve=[1, None, 1], ours=[2, 100, None])
    ratio = stats.paired_ratio(found, OURS, "serve: pickle", "calls_per_s")
    assert ratio == stats.Ratio(2, 2, 2, 1)


def test_without_a_common_round_there_is_no_ratio() -> None:
    found = result(serve=[None, 1], ours=[2, None])
    assert stats.paired_ratio(found, OURS, "serve: pickle", "calls_per_s") is None
    assert stats.median(found, "by reference", "calls_per_s") is None
    assert stats.spread(found, "by reference", "calls_per_s") is None


def test_median_spread_and_errors_of_a_contender() -> None:
    found = result(serve=[3, None, 1, 2, None])
    assert stats.median(found, "serve: pickle", "calls_per_s") == 2
    assert stats.spread(found, "serve: pickle", "calls_per_s") == (1, 3)
    assert stats.errors(found, "serve: pickle") == ["broken"]


def test_the_best_is_the_largest_rate_and_the_smallest_latency() -> None:
    found = result(ref=[1], serve=[2])
    assert stats.best(found, NAMES, "calls_per_s") == "serve: pickle"
    found.samples = [Sample("by reference", 0, p50_ms=1), Sample("serve: pickle", 0, p50_ms=2)]
    assert stats.best(found, NAMES, "p50_ms") == "by reference"
    assert stats.best(found, NAMES, "p99_ms") is None


# ------------------------------------------------------------ targets


@pytest.mark.parametrize(("at_least", "is_met"), [(4.9, True), (5, True), (5.1, False)])
def test_a_target_is_held_against_the_best_of_the_others(at_least: float, is_met: bool) -> None:
    wanted = target(at_least=at_least)
    found = stats.verdict(result(wanted, ref=[1, 1], serve=[2, 2], ours=[10, 10]), wanted)
    assert (found.against, found.other, found.ours) == ("serve: pickle", 2, 10)
    assert found.ratio == stats.Ratio(5, 5, 5, 2)
    assert found.is_met is is_met


def test_an_upper_bound_holds_too() -> None:
    assert stats.verdict(result(ref=[4], ours=[1]), target(at_most=0.25)).is_met
    assert stats.verdict(result(ref=[4], ours=[1.1]), target(at_most=0.25)).is_met is False


def test_a_target_without_numbers_is_neither_met_nor_missed() -> None:
    found = stats.verdict(result(ours=[5]), target(at_least=1))
    assert (found.is_met, found.against, found.ratio) == (None, None, None)
    assert stats.verdict(result(ref=[5]), target(at_least=1)).is_met is None


def test_a_bound_of_the_number_itself_needs_nobody_else() -> None:
    wanted = Target("calls_per_s", OURS, (), "enough", at_least=5, is_absolute=True)
    found = stats.verdict(result(ref=[99], ours=[4, 5, 6]), wanted)
    assert (found.ours, found.ratio, found.against, found.is_met) == (5, None, None, True)
    assert stats.verdict(result(ours=[4]), wanted).is_met is False
    assert stats.verdict(result(ref=[99]), wanted).is_met is None


# ------------------------------------------------------------ samples


def counted(*latencies_s: float, seconds: float = 1.0, items: int = 0) -> Counted:
    first_items_s = [0.01] if items else []
    return Counted(seconds, list(latencies_s), first_items_s, items, 0.5, 0.25)


def test_a_window_becomes_a_sample() -> None:
    sample = sample_of(OURS, 3, [counted(0.001, 0.002, 0.003, 0.004, seconds=2)])
    assert (sample.contender, sample.round, sample.calls) == (OURS, 3, 4)
    assert sample.calls_per_s == 2
    assert sample.p50_ms == pytest.approx(2.5)
    assert sample.p99_ms == pytest.approx(3.97)
    assert sample.caller_cpu_us == pytest.approx(0.5 / 4 * 1e6)
    assert sample.callee_cpu_us == pytest.approx(0.25 / 4 * 1e6)
    assert sample.tokens_per_s is sample.first_token_p50_ms is sample.fairness is None


def test_callers_that_compete_are_added_up() -> None:
    sample = sample_of(OURS, 0, [counted(0.1, 0.1), counted(0.1)])
    assert sample.calls_per_s == 3
    assert sample.fairness == 0.5


def test_a_starved_caller_is_no_error_but_no_call_at_all_is() -> None:
    assert sample_of(OURS, 0, [counted(0.1), counted()]).fairness == 0
    with pytest.raises(TimeoutError, match="no call ended"):
        sample_of(OURS, 0, [counted(), counted()])


def test_streams_that_outlast_the_window_still_have_tokens() -> None:
    sample = sample_of("by reference", 0, [counted(seconds=2, items=100)])
    assert sample.tokens_per_s == 50
    assert sample.first_token_p50_ms == pytest.approx(10)
    assert sample.calls_per_s is sample.p50_ms is None


# ------------------------------------------------------------ contenders and payloads


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("by reference", Contender("by reference")),
        ("serve: orjson", Contender("serve", "orjson")),
        ("serve_grpc: pickle (4 callers)", Contender("serve_grpc", "pickle", 4)),
        ("serve_grpc over gRPC: pickle", Contender("serve_grpc over gRPC", "pickle")),
        (over_grpc(OURS), parse(OVER_GRPC)),
        (over_grpc(f"{OURS} (4 callers)"), replace(parse(OVER_GRPC), callers=4)),
        ("bare unary", Contender("bare unary")),
    ],
)
def test_names_of_contenders(name: str, expected: Contender) -> None:
    assert parse(name) == expected


@pytest.mark.parametrize(
    "name", ["", "grpc", "serve_grpc (four callers)", "serve over gRPC: pickle"]
)
def test_nobody_is_called_that(name: str) -> None:
    with pytest.raises(ValueError, match="no contender"):
        parse(name)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_an_answer_of_another_size_or_type_is_refused(kind) -> None:
    check = checker(make(kind, 10_000))
    check(make(kind, 10_000))
    with pytest.raises(ValueError, match="expected"):
        check(make(kind, 20_000))
    with pytest.raises(ValueError, match="expected"):
        check(None)
    with pytest.raises(ValueError, match="expected 7"):
        checker(7)(8)


# ------------------------------------------------------------ the plan


@pytest.mark.parametrize("plan", [full_plan(), quick_plan()], ids=["full", "quick"])
def test_the_plan_is_consistent(plan: Plan) -> None:
    ids = [case.id for case in plan.cases]
    assert len(set(ids)) == len(ids)
    for case in plan.cases:
        for name in case.contenders:
            parse(name)
        for wanted in case.targets:
            assert {wanted.contender, *wanted.against} <= {*case.contenders}
            assert bool(wanted.against) != wanted.is_absolute
    assert sum(len(group.cases) for group in groups.groups(plan.cases)) == len(ids)


def test_the_plans_keep_to_their_time() -> None:
    assert groups.seconds(full_plan()) < 20 * 60
    assert groups.seconds(quick_plan()) < 3 * 60
    assert full_plan().rounds >= 5


@pytest.mark.parametrize("plan", [full_plan(), quick_plan()], ids=["full", "quick"])
def test_every_case_has_both_carriers_side_by_side(plan: Plan) -> None:
    for case in (*plan.cases, *plan.on_demand):
        at = case.contenders.index(OURS)
        assert OVER_GRPC in case.contenders[at + 1 :], case.id
        callers = [name for name in case.contenders if "callers" in name and OURS in name]
        assert {over_grpc(name) for name in callers} <= {*case.contenders}


def test_memory_is_measured_only_if_it_is_asked_for() -> None:
    plan = full_plan()
    assert "memory" not in {case.sweep for case in plan.cases}
    assert "memory" not in {case.sweep for case in plan.only(["throughput"]).cases}
    (case,) = plan.only(["memory"]).cases
    assert (case.sweep, Order((case,), 5, 0.25).rounds_of(case)) == ("memory", 1)
    assert Order((plan.cases[0],), 5, 0.25).rounds_of(plan.cases[0]) == 5
    assert groups.seconds(plan.only(["memory"])) < 10 * 60


def test_patterns_choose_cases() -> None:
    plan = full_plan()
    exact = plan.only(["in-flight/throughput/1"])
    assert [case.id for case in exact.cases] == ["in-flight/throughput/1"]
    assert not exact.has_growth
    assert {case.sweep for case in plan.only(["flight/*/100"]).cases} == {"in-flight"}
    assert plan.only(["growth"]).has_growth
    assert plan.only(["costs"]).has_costs
    assert plan.only(["doors"]).has_doors
    assert plan.only(["no such thing"]).is_empty


def test_an_order_survives_its_json_form() -> None:
    order = Order(full_plan().cases, 5, 0.25)
    assert Order.from_json(order.to_json()) == order


def test_what_the_shell_says_of_serve_does_not_reach_a_worker() -> None:
    shell = {"PATH": "/bin", "RAY_SERVE_X": "1", "SERVE_GRPC_Y": "2", "RAY_ADDRESS": "auto"}
    env = groups.environment(shell, {"RAY_SERVE_Z": "3"})
    assert env["PATH"] == "/bin"
    assert env["RAY_SERVE_Z"] == "3"
    assert not {"RAY_SERVE_X", "SERVE_GRPC_Y", "RAY_ADDRESS"} & env.keys()
