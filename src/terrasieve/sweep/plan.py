"""Plan: which runs a sweep consists of, each one's recipe, and what of them is done.

Between ``isolate`` and ``run``. Without dropping all policies are the same, so ratio 0 is run once per seed, as policy
"none"; random dropping is always among the policies, since without it nothing can be said of the others.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from terrasieve import recipe
from terrasieve.errors import UserError
from terrasieve.evaluate.protocol import Score, read_scores
from terrasieve.pretrain import FREE
from terrasieve.recipe import AdaptRecipe
from terrasieve.report.sweep_numbers import BASELINE, POLICIES, RANDOM

RATIOS = (0.0, 0.25, 0.5, 0.6, 0.75, 0.85)
VARIED = ("seed", "method.drop.policy", "method.drop.ratio")


@dataclass(frozen=True, order=True)
class Setting:
    """A run of a sweep; sorted by seed, so that the first seed's curves are whole before the second begins."""

    seed: int
    ratio: float
    policy: str

    @property
    def name(self) -> str:
        """Name its folder."""
        return f"{self.policy}-{self.ratio:g}-seed{self.seed}"


def plan(ratios: Sequence[float], policies: Sequence[str], seeds: Sequence[int]) -> list[Setting]:
    """List the runs, in the order in which they start; ratio 0 and random dropping are added where they are missing.

    Args:
        ratios: shares of the patches that are dropped, each in [0, 1).
        policies: of static, dynamic, random, budget.
        seeds: of recipes.

    Raises:
        UserError: a ratio out of range, an unknown policy, or none of something.
    """
    for what, given in (("ratio", ratios), ("policy", policies), ("seed", seeds)):
        if not given:
            raise UserError(f"sweep: at least one {what} is needed.")
    for ratio in ratios:
        if not 0 <= ratio < 1:
            raise UserError(f"sweep: ratio {ratio:g} is not in [0, 1); it is the share of patches that is dropped.")
    for policy in policies:
        if policy not in POLICIES:
            near = difflib.get_close_matches(policy, POLICIES, n=1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(f"sweep: policy {policy!r} is not one of {', '.join(POLICIES)}.{meant}")
    chosen = [(BASELINE, 0.0)]
    chosen += [(policy, ratio) for ratio in set(ratios) - {0.0} for policy in {*policies, RANDOM}]
    return sorted(Setting(seed, ratio, policy) for seed in set(seeds) for policy, ratio in chosen)


def recipe_of(base: AdaptRecipe, setting: Setting) -> AdaptRecipe:
    """Return a run's recipe: the sweep's, with this ratio, policy and seed.

    Raises:
        UserError: if the two do not go together.
    """
    content = base.model_dump(mode="json")
    content |= {"seed": setting.seed, "name": setting.name}
    content["method"]["drop"] |= {"policy": setting.policy, "ratio": setting.ratio}
    return recipe.check(content, f"of run {setting.name}", AdaptRecipe)


def check_base(base: AdaptRecipe, settings: Sequence[Setting]) -> None:
    """Refuse a recipe that leaves a sweep nothing to vary.

    Raises:
        UserError: a fixed threshold, by which dynamic dropping keeps the same patches at every ratio.
    """
    if base.method.drop.threshold is not None and any(setting.policy == "dynamic" for setting in settings):
        raise UserError(
            f"sweep: method.drop.threshold {base.method.drop.threshold:g} fixes what dynamic dropping keeps, whatever "
            "the ratio; leave it out (method.drop.threshold=null), and it is calibrated to each ratio."
        )


def shared(base: AdaptRecipe) -> dict[str, Any]:
    """Return what all runs of a sweep have in common, as flat keys: what decides weights, without what is varied."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, content: dict[str, Any]) -> None:
        for key, value in content.items():
            if isinstance(value, dict):
                walk(f"{prefix}{key}.", value)
            else:
                flat[f"{prefix}{key}"] = value

    walk("", base.model_dump(mode="json", exclude=set(FREE)))
    return {key: value for key, value in flat.items() if key not in VARIED}


def differing(one: AdaptRecipe, other: AdaptRecipe) -> list[str]:
    """Name the keys by which two sweeps' recipes differ."""
    a, b = shared(one), shared(other)
    return [key for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)]


def standing(folder: Path, wanted: AdaptRecipe) -> tuple[str, list[Score]]:
    """Tell what a run's folder holds: "absent", "unfinished", or "done" with its scores.

    Raises:
        UserError: if it holds a run of another recipe.
    """
    stored = folder / "recipe.yaml"
    if not stored.is_file():
        return "absent", []
    there = recipe.load(stored, (), AdaptRecipe)
    keys = differing(there, wanted)
    same = {"seed": there.seed == wanted.seed, "method.drop": there.method.drop == wanted.method.drop}
    keys += [key for key, is_same in same.items() if not is_same]
    if keys:
        raise UserError(f"{folder} holds a run of another recipe: {', '.join(keys)} differ. Sweep into another folder.")
    if not (folder / "scores.json").is_file():
        return "unfinished", []
    try:
        scores = read_scores(folder / "scores.json")
    except UserError:
        return "unfinished", []
    return ("done", scores) if scores else ("unfinished", [])
