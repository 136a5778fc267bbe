"""Fine-tuning from a recipe to a run folder: what the command ``terrasieve adapt`` does.

After ``pretrain`` and ``assess``, whose folder and task handling it shares: finds the task's images and truth, divides
them into train, validation and test, completes the recipe, trains by ``train.loop``, and scores the best weights on
the test images.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from terrasieve import assess, manifest
from terrasieve.data.truth import Truth
from terrasieve.errors import UserError
from terrasieve.evaluate import finetune, tasks
from terrasieve.evaluate.finetune import Part
from terrasieve.evaluate.metrics import METRICS, Kind
from terrasieve.evaluate.probe import HELD_OUT, held_out
from terrasieve.evaluate.protocol import write_scores
from terrasieve.pretrain import complete, describe, refuse_taken, steps_done
from terrasieve.recipe import AdaptRecipe
from terrasieve.train import distributed, folder, loop
from terrasieve.train.distributed import World
from terrasieve.train.state import State, build
from terrasieve.train.trial import Trial

LEAST_VALIDATION = 2


@dataclass(frozen=True)
class Divided:
    """A task's images, found and divided.

    Attributes:
        table: manifest of all of them; its hash is the run's.
        parts: train, val, test.
        classes: names, in the order of the numbers.
        kind: of the task.
        notes: sentences on what was left out and how it was divided.
    """

    table: pa.Table
    parts: dict[str, Part]
    classes: tuple[str, ...]
    kind: Kind
    notes: tuple[str, ...]


def adapt(
    settings: AdaptRecipe,
    run: Path,
    *,
    resume: bool = False,
    stop_at: int | None = None,
    on_start: Callable[[World, AdaptRecipe, int, int], None] | None = None,
    on_step: Callable[[int], None] | None = None,
    on_log: Callable[[dict[str, float]], None] | None = None,
) -> loop.Outcome:
    """Fine-tune as a recipe says, and score the weights that were best on validation on the test images.

    Args:
        settings: the recipe.
        run: folder of the run, made here; with ``resume`` one that exists.
        resume: go on from the newest checkpoint.
        stop_at: stop, resumably, after this many steps in all.
        on_start: called with this process, the completed recipe, training images and steps already done.
        on_step: called after every step with the steps done.
        on_log: called with the numbers of a log line, those of validation with ``val_`` before them.

    Returns:
        How it ended. A run that is over has ``scores.json``.

    Raises:
        UserError: for anything that a user can mend.
    """
    with distributed.join(settings) as world:
        run = Path(distributed.share(world, str(run)))
        refuse_taken(run, settings, world, resume)
        task = divide(settings)
        train = task.parts["train"]
        settings = completed(settings, task)
        monitor = _monitor(settings, task.kind)
        _check_pairs(settings, world)
        with folder.held(run) if world.leads else nullcontext():
            about = {"recipe": settings.model_dump(mode="json"), "manifest_hash": manifest.content_hash(task.table)}
            if world.leads:
                describe(run, settings, about, train.images, resume)
            if on_start:
                on_start(world, settings, len(train.images), steps_done(run))
            state = build(settings, world, len(train.images.bands))
            validate = finetune.measure(task.parts["val"], task.kind, settings.batch_size)
            trial = Trial(
                state, run, validate, monitor=monitor, every=settings.validate_every, patience=settings.patience
            )
            outcome = loop.train(
                state, train.images, run, about, truth=train.truth, trial=trial,
                stop_at=stop_at, on_step=on_step, on_log=on_log,
            )  # fmt: skip
            if outcome.step >= settings.steps or trial.exhausted:
                _score(state, settings, task, trial, run)
            return outcome


def divide(settings: AdaptRecipe) -> Divided:
    """Find a task's images and labels and divide them into train, val and test.

    Splits are drawn with a key of their own, not the run's seed, so that runs of several seeds share a test set.

    Raises:
        UserError: for anything that is wrong with the task.
    """
    found = tasks.load_task(settings.task.data, settings.task.split)
    table, images, entries, notes = assess.images_of(found, settings.image.bands)
    truth = Truth(labels=found.targets[entries])
    split, more = with_validation([found.split[entry] for entry in entries], truth.labels)
    parts = {
        name: Part(images.take(rows), truth.take(rows))
        for name in ("train", "val", "test")
        if len(rows := np.flatnonzero([part == name for part in split]))
    }
    _check_sizes(settings, parts)
    return Divided(table, parts, found.class_names, found.kind, (*found.notes, *notes, *more))


def with_validation(split: list[str], labels: Tensor | None) -> tuple[list[str], list[str]]:
    """Set a part of train aside for validation where a split has none; never a part of test.

    Args:
        split: train, val or test of every image.
        labels: of every image; their classes are kept on both sides. None = drawn without regard to them.

    Returns:
        The split, and notes on what was done.
    """
    if "val" in split:
        return split, []
    rows = [row for row, part in enumerate(split) if part == "train"]
    strata = torch.zeros(len(rows), dtype=torch.long) if labels is None else labels[rows]
    aside = {row for row, out in zip(rows, held_out(strata, HELD_OUT, 0).tolist(), strict=True) if out}
    return (
        ["val" if row in aside else part for row, part in enumerate(split)],
        [f"no validation split: {len(aside)} of {len(rows)} training images are set aside for it, by a keyed draw"],
    )


def _check_sizes(settings: AdaptRecipe, parts: dict[str, Part]) -> None:
    counts = {name: len(parts[name].images) if name in parts else 0 for name in ("train", "val", "test")}
    for name, least in (("train", 1), ("val", LEAST_VALIDATION), ("test", 1)):
        if counts[name] < least:
            listed = ", ".join(f"{count} {part}" for part, count in counts.items())
            raise UserError(
                f"task.data {settings.task.data}: {counts[name]} {name} image(s) that can be read ({listed}); at least "
                f"{least} are needed. Give more images or another task.split."
            )


def completed(settings: AdaptRecipe, task: Divided) -> AdaptRecipe:
    """Fill in what the data say: bands, mean and standard deviation, the method's classes and their weights."""
    labels = task.parts["train"].truth.labels
    weights = None
    if settings.class_weights == "balanced" and labels is not None:
        weights = balanced(labels, len(task.classes))
    method = settings.method.model_copy(
        update={
            "classes": len(task.classes),
            "multilabel": task.kind == "multilabel",
            "class_weights": weights,
        }
    )
    return complete(settings, task.parts["train"].images, method=method.model_dump(mode="json"))


def balanced(labels: Tensor, classes: int) -> tuple[float, ...]:
    """Weight classes by inverse frequency.

    Args:
        labels: (n,) int64: n / (C n_c), so that a class weighs as much as any other; or (n, C) multi-hot: the number
            of negatives per positive. A class without a sample weighs 1.
        classes: C.
    """
    if labels.ndim == 1:
        counts = torch.bincount(labels, minlength=classes).double()
        weights = len(labels) / (classes * counts)
    else:
        counts = labels.double().sum(dim=0)
        weights = (len(labels) - counts) / counts
    return tuple(torch.where((counts > 0) & (weights > 0), weights, 1.0).tolist())


def _monitor(settings: AdaptRecipe, kind: Kind) -> str:
    """Choose the metric that says which weights are best."""
    names = list(METRICS[kind])
    if settings.monitor is not None and settings.monitor not in names:
        raise UserError(f"monitor: {settings.monitor!r} is not a metric of this task; choose from {', '.join(names)}.")
    return settings.monitor or names[0]


def _check_pairs(settings: AdaptRecipe, world: World) -> None:
    share = settings.batch_size // (world.size * settings.accumulate)
    if (settings.mixup or settings.cutmix) and share % 2:
        raise UserError(
            f"mixup and cutmix mix pairs, but each of {world.size} processes gets {share} images at a time; choose "
            f"batch_size as a multiple of {2 * world.size * settings.accumulate}."
        )


def _score(state: State, settings: AdaptRecipe, task: Divided, trial: Trial, run: Path) -> None:
    """Score the best weights, which the end of training has brought back, on the test images."""
    test = task.parts["test"]
    about: dict[str, Any] = {
        "task": settings.task.data,
        "split": settings.task.split,
        "classes": len(task.classes),
        "policy": settings.method.drop.policy,
        "ratio": settings.method.drop.ratio,
        "when": settings.method.drop.when,
        "seed": settings.seed,
        "steps": settings.steps,
        "best_step": trial.best_step,
        f"val_{trial.monitor}": trial.best,
        "train_count": len(task.parts["train"].images),
        "val_count": len(task.parts["val"].images),
        "notes": list(task.notes),
    }
    logits_NC = finetune.logits_of(state, test, settings.batch_size)
    assert test.truth.labels is not None
    scores = finetune.score(logits_NC, test.truth.labels, task.kind, settings.method.name, settings.seed, about)
    if state.world.leads:
        write_scores(scores, run / "scores.json")
