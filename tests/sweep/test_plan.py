"""Which runs a sweep has, what their recipes are, and what is done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from terrasieve import recipe
from terrasieve.errors import UserError
from terrasieve.recipe import AdaptRecipe
from terrasieve.sweep import plan
from terrasieve.sweep.plan import Setting


def test_baseline_is_shared_and_random_is_always_there() -> None:
    made = plan.plan([0, 0.25, 0.5], ["static", "dynamic"], [0, 1])
    assert len(made) == len(set(made)) == 2 * (1 + 2 * 3)
    assert [one.name for one in made[:3]] == ["none-0-seed0", "dynamic-0.25-seed0", "random-0.25-seed0"]
    assert [one.seed for one in made] == [0] * 7 + [1] * 7
    assert plan.plan([0.5], ["static"], [3]) == plan.plan([0, 0.5, 0.5], ["static", "random", "static"], [3, 3])


@pytest.mark.parametrize(
    ("ratios", "policies", "seeds", "words"),
    [
        ([1.0], ["static"], [0], r"ratio 1 is not in \[0, 1\)"),
        ([-0.1], ["static"], [0], "ratio -0.1"),
        ([float("nan")], ["static"], [0], "ratio nan"),
        ([0.5], ["statik"], [0], "Did you mean 'static'"),
        ([0.5], ["none"], [0], "not one of static"),
        ([], ["static"], [0], "at least one ratio"),
        ([0.5], [], [0], "at least one policy"),
        ([0.5], ["static"], [], "at least one seed"),
    ],
)
def test_mistakes(ratios: list[float], policies: list[str], seeds: list[int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        plan.plan(ratios, policies, seeds)


def test_recipes_differ_in_nothing_else(small: Callable[..., AdaptRecipe]) -> None:
    base = small()
    one = plan.recipe_of(base, Setting(7, 0.75, "dynamic"))
    assert (one.seed, one.method.drop.ratio, one.method.drop.policy) == (7, 0.75, "dynamic")
    assert plan.differing(base, one) == []
    assert plan.recipe_of(base, Setting(0, 0.0, "none")).method.drop.policy == "none"
    other = small(steps=5, method={"name": "rvit", "drop": {"reduction": "largest"}})
    assert set(plan.differing(base, other)) == {"steps", "method.drop.reduction"}
    assert plan.differing(base, small(loader={"workers": 2}, log={"every": 1}, output="elsewhere")) == []


def test_a_fixed_threshold_cannot_be_swept(small: Callable[..., AdaptRecipe]) -> None:
    base = small(method={"name": "rvit", "drop": {"policy": "dynamic", "threshold": 0.5}})
    with pytest.raises(UserError, match="threshold=null"):
        plan.check_base(base, plan.plan([0.5], ["dynamic"], [0]))
    plan.check_base(small(), plan.plan([0.5], ["dynamic"], [0]))


def test_standing_of_a_folder(small: Callable[..., AdaptRecipe], tmp_path: Path) -> None:
    wanted = plan.recipe_of(small(), Setting(0, 0.5, "static"))
    assert plan.standing(tmp_path, wanted) == ("absent", [])
    (tmp_path / "recipe.yaml").write_text(recipe.dump(wanted))
    assert plan.standing(tmp_path, wanted) == ("unfinished", [])
    score = {"encoder": "rvit", "protocol": "fine-tuned", "metric": "overall_accuracy", "value": 0.5, "low": 0.4}
    whole = json.dumps([score | {"high": 0.6, "count": 9, "settings": {}}])
    for broken in ("", "[]", "[{}]", whole[:-3]):
        (tmp_path / "scores.json").write_text(broken)
        assert plan.standing(tmp_path, wanted) == ("unfinished", [])
    (tmp_path / "scores.json").write_text(whole)
    state, scores = plan.standing(tmp_path, wanted)
    assert state == "done" and scores[0].value == 0.5
    for other in (Setting(1, 0.5, "static"), Setting(0, 0.6, "static"), Setting(0, 0.5, "random")):
        with pytest.raises(UserError, match="another recipe"):
            plan.standing(tmp_path, plan.recipe_of(small(), other))
