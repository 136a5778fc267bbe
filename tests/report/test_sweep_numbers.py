"""What a sweep's runs say together, against scipy, naive loops and rows with known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from terrasieve.keyed import numpy_generator
from terrasieve.report import sweep_numbers as numbers

from .sweep_rows import row, sweep_content


def found(content: dict) -> list[numbers.Cell]:
    return numbers.cells(content["runs"], content["costs"], "overall_accuracy")


@pytest.mark.parametrize("count", [2, 3, 7])
def test_interval_is_scipys(count: int) -> None:
    values = numpy_generator(0, "test", count).normal(0.8, 0.02, count)
    low, high = stats.t.interval(0.95, count - 1, values.mean(), values.std(ddof=1) / count**0.5)
    made = numbers.estimate(list(values))
    assert (made.mean, made.low, made.high) == pytest.approx((values.mean(), low, high))


def test_one_seed_has_no_interval() -> None:
    made = numbers.estimate([0.5])
    assert made.mean == 0.5 and math.isnan(made.low) and str(made) == "+50.0"


def test_front_is_the_naive_one() -> None:
    draw = numpy_generator(0, "front")
    for _ in range(50):
        points = [tuple(point) for point in draw.integers(0, 6, (8, 2)).astype(float)]
        points.append((math.nan, 9.0))
        expected = []
        for x, y in points:
            beaten = math.isnan(x)
            for a, b in points:
                beaten |= (a > x and b >= y) or (a >= x and b > y)
            expected.append(not beaten)
        assert numbers.pareto(points) == expected


def test_cells_gather_what_is_done() -> None:
    content = sweep_content()
    content["runs"][3] |= {"state": "failed"}
    cells = found(content)
    assert (cells[0].policy, cells[0].ratio) == ("none", 0.0) and len(cells) == 7
    assert next(cell for cell in cells if cell.policy == "static").scores.keys() == {1, 2}
    assert cells[0].score.mean == pytest.approx(0.81)
    assert cells[1].measured("train", "images_per_s") == pytest.approx(180)
    assert math.isnan(numbers.Cell("static", 0.5, {0: 1.0}).measured("train", "images_per_s"))


def test_differences_are_paired_by_seed() -> None:
    content = sweep_content()
    content["runs"] = [r for r in content["runs"] if r["run"] != "random-0.5-seed2"]
    made = numbers.against_random(found(content))
    assert made["static", 0.5].seeds == 2 and made["static", 0.5].mean == pytest.approx(0.0205)
    paired = stats.ttest_rel([0.7 - 0.03, 0.71 - 0.031, 0.75 - 0.032], [0.7, 0.71, 0.75]).confidence_interval(0.95)
    assert (made["static", 0.75].low, made["static", 0.75].high) == pytest.approx((paired.low, paired.high))
    over = numbers.over_ratios(found(content), "static")
    assert over.seeds == 2 and over.mean == pytest.approx(np.mean([(2.0 - 3.0) / 2, (2.1 - 3.1) / 2]) / 100)


def test_verdicts_follow_the_intervals() -> None:
    static, dynamic, caution = numbers.verdicts(found(sweep_content()))
    assert static.startswith(
        "Static beats random dropping at 0.5 (+2.1 [+1.9, +2.3]); loses to random dropping at 0.75"
    )
    assert "paired over 3 seeds" in static and "Over all ratios: -0.5" in static
    assert dynamic.startswith("Dynamic cannot be told apart from random dropping at 0.5 (+0.2 [")
    assert "beats" not in dynamic and "loses" not in dynamic
    assert "of 4 such comparisons" in caution and "0.2 outside" in caution
    one, two = numbers.verdicts(found(sweep_content(seeds=1)))
    assert "one seed, so nothing can be said" in one and "+2.0 at 0.5" in one and two.startswith("Dynamic")


def test_without_random_dropping_nothing_is_said() -> None:
    content = sweep_content()
    content["runs"] = [r for r in content["runs"] if r["policy"] != "random"]
    assert numbers.verdicts(found(content)) == []


def test_claim_ends_at_the_first_ratio_that_loses_more() -> None:
    runs = [row("none", 0.0, 0, 0.8), row("static", 0.25, 0, 0.79), row("static", 0.5, 0, 0.7)]
    runs += [row("static", 0.75, 0, 0.8), row("random", 0.25, 0, 0.5)]
    kept = numbers.kept_within_claim(numbers.cells(runs, [], "overall_accuracy"))
    assert {policy: cell.ratio for policy, cell in kept.items()} == {"static": 0.25}


@pytest.mark.parametrize("metric", ["overall_accuracy", "ap_macro", "miou"])
def test_main_metric_is_that_of_the_task(metric: str) -> None:
    assert numbers.main_metric([row("none", 0.0, 0, 0.8, metric)]) == metric
    both = row("none", 0.0, 0, 0.8, "miou")
    both["scores"] |= row("none", 0.0, 0, 0.9)["scores"]
    assert numbers.main_metric([both]) == "miou" and numbers.main_metric([]) is None
