"""Numbers of a sweep: what its runs say together, from the rows of ``sweep.json``.

First stage of the sweep's report; ``sweep_figures`` draws them, ``sweep_page`` lays them out. Seeds are the samples: a
mean over seeds has Student's t interval, and a policy is set against random dropping seed by seed, since both start
from the same weights and see the same images in the same order. METHODS.md, section 7: always beside random dropping
at equal tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

BASELINE, RANDOM = "none", "random"
POLICIES = ("static", "dynamic", "budget", RANDOM)
MAIN_METRICS = ("miou", "overall_accuracy", "ap_macro")  # segmentation has an overall accuracy too
CLAIM = 0.985  # share of the baseline's score that the study says is kept


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % t interval; ``low`` and ``high`` are NaN for fewer than two seeds."""

    mean: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        """Write it in per cent."""
        around = f" [{100 * self.low:+.1f}, {100 * self.high:+.1f}]" if self.seeds > 1 else ""
        return f"{100 * self.mean:+.1f}{around}"


@dataclass(frozen=True)
class Cell:
    """A policy at a ratio.

    Attributes:
        policy: "none" for the baseline.
        ratio: share of patches dropped, [0, 1).
        scores: seed -> metric in [0, 1]; only runs that are done.
        cost: the row of ``costs``, empty where nothing was measured.
    """

    policy: str
    ratio: float
    scores: dict[int, float]
    cost: dict[str, Any] = field(default_factory=dict)

    @property
    def score(self) -> Estimate:
        """Return the mean over seeds."""
        return estimate(list(self.scores.values()))

    def measured(self, part: str, name: str) -> float:
        """Return a cost, e.g. ("inference", "images_per_s"); NaN where it was not measured."""
        value = self.cost.get(part, {}).get(name)
        return math.nan if value is None else float(value)


def main_metric(runs: Sequence[dict[str, Any]]) -> str | None:
    """Choose the metric of the task's kind: mIoU, overall accuracy or macro AP; None where nothing is scored."""
    found = {metric for run in runs for metric in run["scores"]}
    return next((metric for metric in (*MAIN_METRICS, *sorted(found)) if metric in found), None)


def words(metric: str) -> str:
    """Write a metric's name as people do."""
    short = {"miou": "mIoU", "iou": "IoU", "ap": "AP", "f1": "F1"}
    return " ".join(short.get(part, part) for part in metric.split("_"))


def cells(runs: Sequence[dict[str, Any]], costs: Sequence[dict[str, Any]], metric: str) -> list[Cell]:
    """Gather runs by policy and ratio, the baseline first; a policy and ratio without a finished run has no cell."""
    cost_of = {(cost["policy"], cost["ratio"]): cost for cost in costs}
    scores: dict[tuple[str, float], dict[int, float]] = {}
    for run in runs:
        if run["state"] == "done" and metric in run["scores"]:
            scores.setdefault((run["policy"], run["ratio"]), {})[run["seed"]] = run["scores"][metric][0]
    order = {name: place for place, name in enumerate((BASELINE, *POLICIES))}
    keys = sorted(scores, key=lambda key: (order.get(key[0], len(order)), key))
    return [Cell(*key, dict(sorted(scores[key].items())), cost_of.get(key, {})) for key in keys]


def estimate(values: Sequence[float]) -> Estimate:
    """Average over seeds, with Student's t interval.

    Args:
        values: one per seed, at least one.
    """
    from scipy.special import stdtrit

    n, mean = len(values), fmean(values)
    half = float(stdtrit(n - 1, 0.975)) * stdev(values) / math.sqrt(n) if n > 1 else math.nan
    return Estimate(mean, mean - half, mean + half, n)


def paired(one: Cell, other: Cell) -> Estimate | None:
    """Estimate how much higher ``one`` scores than ``other``, over the seeds that both have; None without any."""
    shared = sorted(one.scores.keys() & other.scores.keys())
    return estimate([one.scores[seed] - other.scores[seed] for seed in shared]) if shared else None


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Tell which points nobody beats: (gain, score), both the higher the better; NaN is never on the front."""
    return [
        all(math.isfinite(v) for v in point)
        and not any(o[0] >= point[0] and o[1] >= point[1] and tuple(o) != tuple(point) for o in points)
        for point in points
    ]


def against_random(found: Sequence[Cell]) -> dict[tuple[str, float], Estimate]:
    """Set every cell of a scoring policy against random dropping at the same ratio: (policy, ratio) -> difference."""
    random = {cell.ratio: cell for cell in found if cell.policy == RANDOM}
    differences = {
        (cell.policy, cell.ratio): paired(cell, random[cell.ratio])
        for cell in found
        if cell.policy not in (BASELINE, RANDOM) and cell.ratio in random
    }
    return {key: value for key, value in differences.items() if value is not None}


def over_ratios(found: Sequence[Cell], policy: str) -> Estimate | None:
    """Average a policy's difference to random dropping over the ratios, seed by seed, then over seeds.

    Only seeds that have both runs at every ratio count, so that no seed weighs some ratios more than others.
    """
    random = {cell.ratio: cell for cell in found if cell.policy == RANDOM}
    pairs = [(cell, random[cell.ratio]) for cell in found if cell.policy == policy and cell.ratio in random]
    if not pairs:
        return None
    shared = set.intersection(*(one.scores.keys() & other.scores.keys() for one, other in pairs))
    if not shared:
        return None
    return estimate([fmean(one.scores[s] - other.scores[s] for one, other in pairs) for s in sorted(shared)])


def verdicts(found: Sequence[Cell]) -> list[str]:
    """Say in words where redundancy scoring does and does not beat random dropping, as the numbers have it."""
    differences = against_random(found)
    sentences = []
    for policy in dict.fromkeys(policy for policy, _ in differences):
        mine = {ratio: value for (name, ratio), value in differences.items() if name == policy}
        sentences.append(_verdict(policy, mine, over_ratios(found, policy)))
    tested = sum(value.seeds > 1 for value in differences.values())
    if tested > 1:
        sentences.append(
            f"Each interval holds by itself: of {tested} such comparisons, chance alone would put about "
            f"{0.05 * tested:.1f} outside."
        )
    return sentences


def _verdict(policy: str, mine: dict[float, Estimate], overall: Estimate | None) -> str:
    tested = {ratio: value for ratio, value in mine.items() if value.seeds > 1}
    if not tested:
        listed = ", ".join(f"{value} at {ratio:g}" for ratio, value in mine.items())
        return (
            f"{policy.capitalize()} against random dropping, in points: {listed}; one seed, so nothing can be said of "
            "whether that is more than chance."
        )
    groups: dict[str, list[str]] = {"beats": [], "loses to": [], "cannot be told apart from": []}
    for ratio, value in tested.items():
        kind = "beats" if value.low > 0 else "loses to" if value.high < 0 else "cannot be told apart from"
        groups[kind].append(f"{ratio:g} ({value})")
    words = [f"{kind} random dropping at {', '.join(listed)}" for kind, listed in groups.items() if listed]
    seeds = sorted({value.seeds for value in tested.values()})
    said = f"{policy.capitalize()} {'; '.join(words)}: points, paired over {'-'.join(map(str, seeds))} seeds."
    return f"{said} Over all ratios: {overall} points." if overall else said


def kept_within_claim(found: Sequence[Cell]) -> dict[str, Cell]:
    """Find for every policy the highest ratio up to which each ratio keeps ``CLAIM`` of the baseline's mean score."""
    base = next((cell for cell in found if cell.policy == BASELINE), None)
    best: dict[str, Cell] = {}
    if base is None:
        return best
    lost: set[str] = set()
    for cell in sorted(found, key=lambda c: c.ratio):
        if cell.policy == BASELINE or cell.policy in lost:
            continue
        if cell.score.mean >= CLAIM * base.score.mean:
            best[cell.policy] = cell
        else:
            lost.add(cell.policy)
    return best
