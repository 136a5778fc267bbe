"""Study file: named arms of one recipe, and what is measured of them; read by ``study``."""

from __future__ import annotations

import copy
from typing import Any

from pydantic import Field

from terrasieve import recipe
from terrasieve.section import Section


class Study(Section):
    """A study file.

    Attributes:
        name: of the study.
        recipe: of terrasieve pretrain; what all arms share.
        arms: name -> what differs, keys as on the command line (``method.mask: 0.75``; ``method: {...}`` replaces all).
        train_only: pretrain on the rows whose split is train, so that nothing of the test places is seen.
        seeds: of the runs.
        against: the arm that the others are set against, seed by seed, and whose CPU time is the budget.
        equal_cpu: arms that are run once more at that CPU time.
        trial: steps of a trial, and how many times the arms take turns.
        measures: what is measured of every trained encoder: kind, and what that kind takes; optionally data (a
            manifest; default: the recipe's), every (of its rows only each so-manieth), prefix (of the metrics' names),
            metrics (those that are kept; default: all).
    """

    name: str = Field(pattern=r"^[\w.-]+$")
    recipe: dict[str, Any]
    arms: dict[str, dict[str, Any]]
    train_only: bool = True
    seeds: tuple[int, ...] = (0, 1, 2)
    against: str
    equal_cpu: tuple[str, ...] = ()
    trial: dict[str, int] = Field(default={"steps": 40, "rounds": 3})
    measures: tuple[dict[str, Any], ...] = ({"kind": "scores"},)

    def recipe_of(self, arm: str, seed: int, steps: int | None = None) -> dict[str, Any]:
        """Return an arm's recipe, checked and complete but for what the data say."""
        content = copy.deepcopy(self.recipe) | {"name": f"{self.name}-{arm}", "seed": seed}
        for key, value in self.arms[arm].items():
            *path, last = key.split(".")
            place = content
            for part in path:
                place = place.setdefault(part, {})
            place[last] = copy.deepcopy(value)
        content |= {"steps": steps} if steps else {}
        return recipe.check(content, f"of the arm {arm}").model_dump(mode="json")
