"""Settings of a suite: its tasks and protocols, one YAML file each; read and checked whole before anything starts.

First of the suite's files. ``recipes/suites`` holds suites, ``recipes/protocols`` protocols; users write their own.
"""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from terrasieve import recipe, settings_file
from terrasieve.data import catalog
from terrasieve.data.boxes import BoxSettings
from terrasieve.data.masks import MaskSettings
from terrasieve.errors import UserError
from terrasieve.nn.encoder import Pool
from terrasieve.recipe import AdaptRecipe
from terrasieve.section import Section

FROZEN = ("knn", "linear")
NAME = r"^[\w.-]+$"


class Published(Section):
    """Figures of a paper for a task.

    Attributes:
        paper: who published them, so that a reader finds it.
        table: of the paper.
        values: per cent, by the name that the paper gives the model.
        metric: as the paper calls it.
        protocol: of the task's, beside whose row the figures stand; None = beside all.
        note: what is not the same here, if anything.
    """

    paper: str
    table: str
    values: dict[str, float]
    metric: str
    protocol: str | None = None
    note: str = ""


class Samples(Section):
    """Images in a folder each, with a table of all of them (the layout of GEO-Bench-2's samples).

    Attributes:
        folder: below the folder of data.
        image: name of the image in each sample's folder.
        bands: names in the file's order.
        table: CSV with the columns sample, split and, for labels, labels with semicolons between.
    """

    folder: str
    image: str
    bands: tuple[str, ...]
    table: str = "locations.csv"


class Task(Section):
    """A task and how it is scored.

    Attributes:
        name: of its rows in the table.
        data: as of ``terrasieve evaluate --task``; relative paths are below the folder of data.
        samples: instead of ``data``.
        protocols: names of protocols.
        metric: that the table shows; None = the first of the task's.
        split, masks, boxes: as of ``terrasieve evaluate`` and of a recipe of ``terrasieve adapt``.
        bands: of the task, one for each of the encoder's, in their order; None = those of the same names.
        normalise: by the mean and standard deviation of the task's training images, or the encoder's where it has
            some.
        overrides: keys of the protocol's recipe: steps=200.
        seeds: of trained protocols; None = the suite's.
        published: figures of papers.
    """

    name: str = Field(pattern=NAME)
    data: str | None = None
    samples: Samples | None = None
    protocols: tuple[str, ...] = Field(min_length=1)
    metric: str | None = None
    split: str | None = None
    masks: MaskSettings | None = None
    boxes: BoxSettings | None = None
    bands: tuple[str, ...] | None = None
    normalise: Literal["task", "encoder"] = "task"
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] | None = None
    published: tuple[Published, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.data is None) == (self.samples is None):
            raise ValueError(f"task {self.name}: give one of data and samples")
        stray = [each.protocol for each in self.published if each.protocol not in (None, *self.protocols)]
        if stray:
            raise ValueError(f"task {self.name}: published.protocol {stray[0]!r} is not one of its protocols")
        return self


class Suite(Section):
    """Tasks that an encoder is scored on.

    Attributes:
        name: of the suite.
        about: one sentence for the report.
        seeds: of trained protocols. Frozen ones draw nothing and are scored once.
        tasks: in the order of the table.
    """

    name: str = Field(pattern=NAME)
    about: str = ""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    tasks: tuple[Task, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        names = [task.name for task in self.tasks]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"tasks: two are called {twice[0]!r}")
        return self


class Protocol(Section):
    """How an encoder is scored on a task.

    Attributes:
        name: in the table.
        kind: ``knn`` and ``linear`` on frozen features; ``adapt`` trains as ``recipe`` says.
        source: paper and table that the settings are from.
        differs: what is not as there.
        k, temperature: of k-NN.
        pool: mean of the patch tokens or the class token.
        epochs, warmup_epochs: of the training images, in the place of the recipe's steps and warm-up.
        sliding: score segmentations at their full size in windows of the image size, which overlap by this share;
            None = whole images, resampled to the image size.
        recipe: of ``terrasieve adapt``, without task and encoder weights.
    """

    name: str = Field(pattern=NAME)
    kind: Literal["knn", "linear", "adapt"]
    source: str
    differs: str = ""
    k: int = Field(default=20, ge=1)
    temperature: float = Field(default=0.07, gt=0)
    pool: Pool = "mean"
    epochs: float | None = Field(default=None, gt=0)
    warmup_epochs: float = Field(default=0.0, ge=0)
    sliding: float | None = Field(default=None, ge=0, lt=1)
    recipe: dict[str, Any] = Field(default_factory=dict)


def recipes() -> Path:
    """Return the folder of the project's recipes, in the checkout or in the installed package."""
    inside = Path(str(resources.files("terrasieve"))) / "recipes"
    return inside if inside.is_dir() else Path(__file__).resolve().parents[3] / "recipes"


def find(name: str, kind: str, near: Path | None = None) -> Path:
    """Return the file of a suite or protocol: a path, or the name of one of the project's.

    Args:
        name: path or name.
        kind: ``suites`` or ``protocols``.
        near: a folder that relative paths may be below.

    Raises:
        UserError: there is none.
    """
    for path in ([near / name] if near else []) + [Path(name)]:
        if path.is_file():
            return path
    own = {path.stem: path for path in sorted((recipes() / kind).glob("*.yaml"))}
    if name in own:
        return own[name]
    close = difflib.get_close_matches(name, own, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise UserError(f"There is no {kind[:-1]} {name!r}: no such file, and none of {', '.join(own)}.{hint}")


def load(name: str) -> tuple[Suite, dict[str, Protocol], Path]:
    """Read a suite and its protocols.

    Returns:
        The suite, the protocols by the names that its tasks give them, and the suite's file.

    Raises:
        UserError: listing every mistake.
    """
    path = find(name, "suites")
    suite = settings_file.validate(settings_file.read(path), str(path), Suite)
    wanted = dict.fromkeys(name for task in suite.tasks for name in task.protocols)
    protocols = {name: load_protocol(find(name, "protocols", path.parent)) for name in wanted}
    for task in suite.tasks:
        for each in (protocols[name] for name in task.protocols):
            if each.kind == "linear" and (task.masks or catalog.masks_of(task.data or "")):
                raise UserError(f"{path}: task {task.name} has masks, which linear does not score; use knn, or train.")
            if each.kind == "adapt":
                recipe_of(each, {"data": task.data or "samples"} | _truth(task), task.overrides, f"{path}, {task.name}")
    return suite, protocols, path


def load_protocol(path: Path) -> Protocol:
    """Read a protocol; errors as of :func:`load`."""
    return settings_file.validate(settings_file.read(path), str(path), Protocol)


def recipe_of(
    protocol: Protocol, task: dict[str, Any], overrides: tuple[str, ...], where: str, **more: Any
) -> AdaptRecipe:
    """Make a protocol's recipe whole.

    Args:
        protocol: of kind ``adapt``.
        task: section ``task``.
        overrides: ``key=value``.
        where: for messages.
        more: further top-level keys; sections are merged into the protocol's.

    Raises:
        UserError: listing every mistake.
    """
    content: dict[str, Any] = {"steps": 1, "name": protocol.name}
    for source in (protocol.recipe, more):
        for key, value in source.items():
            held = content.get(key)
            content[key] = {**held, **value} if isinstance(held, dict) and isinstance(value, dict) else value
    content["task"] = task
    return recipe.check(settings_file.override(content, overrides), where, AdaptRecipe)


def _truth(task: Task) -> dict[str, Any]:
    """Return a task's masks, boxes and split as keys of a recipe's section ``task``."""
    found: dict[str, Any] = {"split": task.split}
    found |= {"masks": task.masks.model_dump()} if task.masks else {}
    return found | ({"boxes": task.boxes.model_dump()} if task.boxes else {})
