"""Plan: the study file, named arms of one recipe and what is measured of them, checked whole before anything starts."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from terrasieve import recipe
from terrasieve.errors import UserError
from terrasieve.section import Section
from terrasieve.settings_file import override, read, validate
from terrasieve.study.measures import MEASURES

DRY_STEPS = 5


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

    def only(self, patterns: Sequence[str]) -> Study:
        """Return the study of the arms that match one of the patterns (``moco-*``), the reference among them.

        Raises:
            UserError: no arm matches.
        """
        fits = {arm for arm in self.arms if any(fnmatch.fnmatch(arm, one) for one in patterns)}
        arms = {arm: what for arm, what in self.arms.items() if arm in fits or arm == self.against}
        if not fits:
            raise UserError(f"No arm is called {', '.join(patterns)}; the arms are {', '.join(self.arms)}.")
        equal_cpu = tuple(arm for arm in self.equal_cpu if arm in arms)
        return self.model_copy(update={"arms": arms, "equal_cpu": equal_cpu})

    def dry(self) -> Study:
        """Return the study of every arm for some steps, one seed."""
        arms = {arm: {**changes, "steps": DRY_STEPS} for arm, changes in self.arms.items()}
        return self.model_copy(update={"arms": arms, "seeds": self.seeds[:1], "equal_cpu": ()})


def load(path: str, overrides: Sequence[str] = ()) -> Study:
    """Read a study file; overrides are of its recipe's or its own keys (``recipe.steps=100``, ``seeds=[0]``)."""
    study = validate(override(read(path), overrides), path, Study)
    for arm in [study.against, *study.equal_cpu]:
        if arm not in study.arms:
            raise UserError(f"{path}: there is no arm {arm!r}; the arms are {', '.join(study.arms)}.")
    for measure in study.measures:
        if measure.get("kind") not in MEASURES:
            raise UserError(f"{path}: measure {measure.get('kind')!r} is not one of {', '.join(MEASURES)}.")
    for arm in study.arms:
        study.recipe_of(arm, 0)
    return study
