"""Medians of rounds, ratios paired by round, and whether targets are met.

Noise on a shared machine comes in spells. Samples of one round were taken one after another, so a
ratio is formed inside each round and the median of these ratios is reported; the quotient of two
medians is not. Pure: no Ray, no printing.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bench.results.run import CaseResult, Run, Target

__all__ = [
    "HIGHER_IS_BETTER",
    "Ratio",
    "Verdict",
    "best",
    "errors",
    "median",
    "paired_ratio",
    "spread",
    "values",
    "verdict",
    "verdicts",
]

HIGHER_IS_BETTER = frozenset({"calls_per_s", "tokens_per_s", "fairness", "large_per_s"})
"""Metrics of `Sample` that should be large; all others should be small."""


@dataclass(frozen=True)
class Ratio:
    """A contender's number over another's, round by round.

    Attributes:
        median: Median of the rounds' ratios.
        low, high: The smallest and the largest of them.
        rounds: How many rounds have both numbers.
    """

    median: float
    low: float
    high: float
    rounds: int


@dataclass(frozen=True)
class Verdict:
    """What became of one target.

    Attributes:
        case: Id of the case.
        target: What was to be shown.
        ours: Median of the target's contender, in the metric's unit; None if it has no number.
        against: Name of the best of the others; None if none of them has a number.
        other: Its median.
        ratio: `contender / against`, paired by round; None if one of them has no number, and for
            a bound of the number itself.
        is_met: None if there is nothing to hold against the bound.
    """

    case: str
    target: Target
    ours: float | None
    against: str | None
    other: float | None
    ratio: Ratio | None
    is_met: bool | None


def values(result: CaseResult, contender: str, metric: str) -> dict[int, float]:
    """The contender's numbers, by round; rounds without one are missing."""
    found: dict[int, float] = {}
    for sample in result.samples:
        value = getattr(sample, metric)
        if sample.contender == contender and value is not None:
            found[sample.round] = value
    return found


def median(result: CaseResult, contender: str, metric: str) -> float | None:
    """Median over the rounds, or None if the contender has no number."""
    found = values(result, contender, metric)
    return statistics.median(found.values()) if found else None


def spread(result: CaseResult, contender: str, metric: str) -> tuple[float, float] | None:
    """Smallest and largest of the rounds' numbers, or None if there are none."""
    found = values(result, contender, metric).values()
    return (min(found), max(found)) if found else None


def errors(result: CaseResult, contender: str) -> list[str]:
    """Reasons of the rounds that failed, without repetitions, in order."""
    reasons = (s.error for s in result.samples if s.contender == contender)
    return list(dict.fromkeys(reason for reason in reasons if reason is not None))


def best(result: CaseResult, contenders: Iterable[str], metric: str) -> str | None:
    """Which of `contenders` has the best median; None if none of them has a number."""
    medians = {name: median(result, name, metric) for name in contenders}
    known = {name: value for name, value in medians.items() if value is not None}
    if not known:
        return None
    choose = max if metric in HIGHER_IS_BETTER else min
    return choose(known, key=known.__getitem__)


def paired_ratio(result: CaseResult, contender: str, against: str, metric: str) -> Ratio | None:
    """`contender / against` over the rounds that have both; None if there is no such round."""
    ours, others = values(result, contender, metric), values(result, against, metric)
    ratios = [ours[number] / others[number] for number in ours if others.get(number)]
    if not ratios:
        return None
    return Ratio(statistics.median(ratios), min(ratios), max(ratios), len(ratios))


def verdict(result: CaseResult, target: Target) -> Verdict:
    """Hold one case against one of its targets."""
    against = best(result, target.against, target.metric)
    ratio = other = None
    if against is not None:
        ratio = paired_ratio(result, target.contender, against, target.metric)
        other = median(result, against, target.metric)
    ours = median(result, target.contender, target.metric)
    held = ours if target.is_absolute else ratio and ratio.median
    is_met = None
    if held is not None:
        is_met = (target.at_least is None or held >= target.at_least) and (
            target.at_most is None or held <= target.at_most
        )
    return Verdict(result.case.id, target, ours, against, other, ratio, is_met)


def verdicts(run: Run) -> Iterator[Verdict]:
    """All targets of a run, in the plan's order."""
    for result in run.cases:
        for target in result.case.targets:
            yield verdict(result, target)
