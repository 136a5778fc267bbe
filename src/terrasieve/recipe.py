"""Recipe: one YAML file per run, checked whole before anything starts.

``key.sub=value`` overrides on the command line, no inheritance, no interpolation. A mistake names the key, the value,
what is allowed and the nearest spelling. The parts are described beside the code that reads them (``train.settings``).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from typing_extensions import TypeVar

from terrasieve.errors import UserError
from terrasieve.section import Section
from terrasieve.settings_file import dump, override, read, validate
from terrasieve.train.settings import AdaptSettings, TrainSettings

__all__ = ["AdaptRecipe", "Recipe", "check", "dump", "kind_of", "load", "read"]


class Named(Section):
    """Where a run goes.

    Attributes:
        name: of the run; its folder is ``output``/``name``-date-time.
        output: folder that holds the runs.
    """

    name: str = Field(default="run", pattern=r"^[\w.-]+$")
    output: str = "runs"


class Recipe(TrainSettings, Named):
    """Everything about a pretraining: what is computed (``TrainSettings``), on what data, under which name.

    Attributes:
        data: path of the manifest.
    """

    command: ClassVar[str] = "pretrain"
    data: str

    @property
    def source(self) -> str:
        """What the images come from."""
        return self.data


class AdaptRecipe(AdaptSettings, Named):
    """Everything about a fine-tuning: what is computed, on which task (``AdaptSettings``), under which name."""

    command: ClassVar[str] = "adapt"

    @property
    def source(self) -> str:
        """What the images come from."""
        return self.task.data


R = TypeVar("R", bound=Recipe | AdaptRecipe, default=Recipe)


def load(path: str | Path, overrides: Iterable[str] = (), kind: type[R] = Recipe) -> R:  # type: ignore[assignment]
    """Read a recipe and apply overrides.

    Args:
        path: YAML file.
        overrides: ``key=value`` or ``key.sub=value``; the value is read as YAML.
        kind: ``Recipe`` of a pretraining, or ``AdaptRecipe`` of a fine-tuning.

    Raises:
        UserError: if the file is missing or not YAML, or a key or value is wrong; all mistakes are listed at once.
    """
    return check(override(read(path), overrides), str(path), kind)


def kind_of(path: str | Path) -> type[Recipe] | type[AdaptRecipe]:
    """Tell what a recipe is of: a fine-tuning has a task, a pretraining has data."""
    return AdaptRecipe if "task" in read(path) else Recipe


def check(content: dict[str, Any], where: str, kind: type[R] = Recipe) -> R:  # type: ignore[assignment]
    """Turn keys and values into a recipe.

    Raises:
        UserError: listing every mistake.
    """
    other = AdaptRecipe if kind is Recipe else Recipe
    if "sources" in content:
        raise UserError(f"The recipe {where} is one of terrasieve curate, not of terrasieve {kind.command}.")
    if ("task" in content and kind is Recipe) or ({"data", "task"} & set(content) == {"data"} and kind is AdaptRecipe):
        raise UserError(f"The recipe {where} is one of terrasieve {other.command}, not of terrasieve {kind.command}.")
    return validate(content, where, kind)
