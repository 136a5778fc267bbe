"""Fine-tuning from a recipe to a run folder: what the command ``terrasieve adapt`` does.

After ``pretrain``, whose folder handling it shares: divides the task's images, completes the recipe with what they
say, trains by ``train.loop`` with a validation now and then, and scores the best weights on the test images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from terrasieve import manifest
from terrasieve.data.truth import Truth
from terrasieve.errors import UserError
from terrasieve.evaluate import dense, detect, finetune, parts
from terrasieve.evaluate.metrics import METRICS
from terrasieve.evaluate.parts import Divided
from terrasieve.evaluate.protocol import write_scores
from terrasieve.evaluate.redundancy import patch_scores
from terrasieve.nn.encoder import Encoder
from terrasieve.pretrain import complete, describe, refuse_taken, steps_done
from terrasieve.recipe import AdaptRecipe
from terrasieve.train import distributed, folder, loop
from terrasieve.train.distributed import World
from terrasieve.train.state import State, build
from terrasieve.train.trial import Trial


def adapt(
    settings: AdaptRecipe,
    run: Path,
    *,
    resume: bool = False,
    stop_at: int | None = None,
    task: Divided | None = None,
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
        task: the recipe's, where it has been found and divided already.
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
        task = task or divide(settings)
        settings = completed(settings, task)
        monitor = _monitor(settings, task)
        _check_pairs(settings, world)
        with folder.held(run) if world.leads else nullcontext():
            about = {"recipe": settings.model_dump(mode="json"), "manifest_hash": manifest.content_hash(task.table)}
            task = with_redundancy(settings, task, world)
            train = task.parts["train"]
            if world.leads:
                sizes = {"image_px": np.median(train.images.windows[:, [3, 2]], axis=0).astype(int).tolist()}
                describe(run, settings, about, train.images, resume, classes=list(task.classes), **sizes)
            if on_start:
                on_start(world, settings, len(train.images), steps_done(run))
            state = build(settings, world, len(train.images.bands))
            validate = finetune.measure(task, settings.batch_size)
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
    """Find a recipe's images and truth and divide them into train, val and test.

    Raises:
        UserError: for anything that is wrong with the task.
    """
    return parts.divide(settings.task, settings.image.bands)


def completed(settings: AdaptRecipe, task: Divided) -> AdaptRecipe:
    """Fill in what the data say: bands, mean and standard deviation, the method's classes and their weights."""
    train, classes = task.parts["train"], len(task.classes)
    weights = balanced(train.truth, classes) if settings.class_weights == "balanced" else None
    found = {"classes": classes, "class_weights": weights}
    found |= {"multilabel": task.kind == "multilabel"} if settings.method.name == "rvit" else {}
    method = settings.method.model_copy(update=found).model_dump(mode="json")
    return complete(settings, train.images, method=method)


def with_redundancy(settings: AdaptRecipe, task: Divided, world: World | None = None) -> Divided:
    """Give every part its patches' redundancy, if the recipe wants it computed once and kept.

    The scores lie in ``output``/redundancy, named by what they depend on, and serve every run that shares it.

    Args:
        settings: completed.
        task: whose images are scored.
        world: of several processes, the first one computes.
    """
    drop = settings.method.drop
    if not drop.cached or drop.policy in ("none", "random"):
        return task
    encoder = None
    if drop.of == "embeddings":
        bands = task.images.bands
        encoder = Encoder(settings.encoder, len(bands), settings.image.shape_px, settings.seed, bands).eval()
    image = settings.image.model_dump(mode="json", exclude={"augment"})
    depends = [manifest.content_hash(task.table), image, settings.encoder.patch_px, drop.of, drop.reduction]
    depends += [settings.encoder.model_dump(mode="json"), settings.seed] if encoder else []
    key = json.dumps(depends)
    path = Path(settings.output) / "redundancy" / f"{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}.npy"
    for leads in (True, False):
        if world is None or world.leads == leads:
            scores = patch_scores(task.images, settings.image, drop, settings.encoder.patch_px, encoder, path, key)
        if world is not None:
            distributed.share(world, "")  # the others read what the first has written
    rows, columns = (side // settings.encoder.patch_px for side in settings.image.shape_px)
    return replace(task, truth=replace(task.truth, redundancy=scores.reshape(-1, rows, columns)))


def balanced(truth: Truth, classes: int) -> tuple[float, ...]:
    """Weight classes by inverse frequency, among labels or the pixels of masks.

    Args:
        truth: of the training images.
        classes: C.

    Returns:
        One of each class: total / (C x count), so that a class weighs as much as any other; where images have several
        labels, the number of negatives per positive. A class without a sample weighs 1.
    """
    if truth.masks is not None:
        counts = torch.from_numpy(truth.masks.count()).double()
    else:
        assert truth.labels is not None
        several = truth.labels.ndim == 2
        counts = truth.labels.double().sum(0) if several else torch.bincount(truth.labels, minlength=classes).double()
        if several:
            weights = (len(truth.labels) - counts) / counts
            return tuple(torch.where((counts > 0) & (weights > 0), weights, 1.0).tolist())
    return tuple(torch.where(counts > 0, counts.sum() / (classes * counts), 1.0).tolist())


def _monitor(settings: AdaptRecipe, task: Divided) -> str:
    """Choose the metric that says which weights are best."""
    if task.kind == "segmentation":
        names = list(dense.METRICS)
    else:
        names = list(detect.METRICS if task.kind == "detection" else METRICS[task.kind])
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
    drop = settings.method.drop
    about: dict[str, Any] = {
        "task": settings.task.data,
        "split": settings.task.split,
        "classes": len(task.classes),
        "policy": drop.policy,
        "ratio": drop.ratio,
        "when": drop.when,
        "seed": settings.seed,
        "steps": settings.steps,
        "best_step": trial.best_step,
        f"val_{trial.monitor}": trial.best,
        **{f"{name}_count": len(rows) for name, rows in task.rows.items()},
        "notes": list(task.notes),
    }
    scores = finetune.score(state, task, settings.batch_size, settings.method.name, about)
    if state.world.leads:
        write_scores(scores, run / "scores.json")
