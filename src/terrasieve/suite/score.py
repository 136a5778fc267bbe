"""Scoring a job of a suite: on frozen features, or by training as the protocol's recipe says.

Runs in a process of its own (``sweep.isolate``), so that a job's memory is its own and a job that dies takes no other
with it.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any, cast

import torch

from terrasieve import adapt, assess, opened, predict, pretrain
from terrasieve.bench.memory import high_water_kb
from terrasieve.data import catalog
from terrasieve.evaluate import dense, sliding
from terrasieve.evaluate.fitted import Reading
from terrasieve.evaluate.parts import Divided
from terrasieve.evaluate.protocol import FINE_TUNED, Score, read_scores
from terrasieve.evaluate.resampled import Made
from terrasieve.methods import Adapter
from terrasieve.opened import Wanted
from terrasieve.recipe import AdaptRecipe
from terrasieve.suite import data, encoders
from terrasieve.suite.jobs import Job
from terrasieve.suite.settings import FROZEN, recipe_of
from terrasieve.sweep.isolate import parent_is_gone


def score(encoder: str, wanted: Wanted, job: Job, folder: Path, threads: int, workers: int) -> dict[str, Any]:
    """Score a job.

    Args:
        encoder: see ``suite.encoders``.
        wanted: of an encoder that does not say it itself.
        job: what is to be done.
        folder: of the suite.
        threads: of torch.
        workers: reading processes.

    Returns:
        ``scores`` as JSON, ``notes``, ``memory_mb`` (peak growth of this process, or of the GPU's memory), ``run`` (the
        training's folder or None).

    Raises:
        UserError: for anything that a user can mend.
    """
    torch.set_num_threads(threads)
    before = high_water_kb()
    spec = data.manifest_of(job.task, job.spec, folder / "data")
    run = folder / "runs" / job.name
    if job.protocols[0].kind in FROZEN:
        scores, notes = _frozen(encoder, wanted, job, spec, workers)
    else:
        scores, notes = _trained(encoder, wanted, job, spec, run, workers)
    if torch.cuda.is_available():
        memory_mb = torch.cuda.max_memory_allocated() / 1e6
    else:
        memory_mb = (high_water_kb() - before) * 1024 / 1e6
    return {
        "scores": [each.to_json() for each in scores],
        "notes": notes,
        "memory_mb": memory_mb,
        "run": f"runs/{job.name}" if run.is_dir() else None,
    }


def _go_on(*_: int) -> None:
    """Stop, resumably, when the suite has died."""
    if parent_is_gone():
        raise KeyboardInterrupt


def _frozen(encoder: str, wanted: Wanted, job: Job, spec: str, workers: int) -> tuple[list[Score], list[str]]:
    """Score on frozen features, beside the untrained encoder and raw pixels."""
    task, first = job.task, job.protocols[0]
    wanted = wanted if Path(encoder).is_dir() else wanted._replace(bands=task.bands or wanted.bands)
    neighbours = next((each for each in job.protocols if each.kind == "knn"), first)
    own = task.normalise == "task"
    reading = Reading(task.bands, own, keep=False, k=neighbours.k, temperature=neighbours.temperature)
    masks = task.masks or catalog.masks_of(spec)
    if masks is not None:
        scores = assess.evaluate_masks(
            encoder, spec, masks, wanted=wanted, split=task.split, seed=job.seed, workers=workers, on_images=_go_on,
            reading=reading,
        )  # fmt: skip
        return scores, list(scores[0].settings["notes"])
    scores, _ = assess.evaluate_run(
        encoder, spec, wanted=wanted, split=task.split, protocols=[each.kind for each in job.protocols],
        pool=first.pool, seed=job.seed, workers=workers, on_images=_go_on, reading=reading,
    )  # fmt: skip
    return scores, list(scores[0].settings["notes"])


def _trained(
    encoder: str, wanted: Wanted, job: Job, spec: str, run: Path, workers: int
) -> tuple[list[Score], list[str]]:
    """Train as the protocol says, or go on with what was interrupted, and score the best weights."""
    protocol = job.protocols[0]
    resume = (run / "recipe.yaml").is_file()
    settings = pretrain.resumed(run, [], AdaptRecipe) if resume else _settings(encoder, wanted, job, spec, workers)
    task = adapt.divide(settings)
    if not resume:
        settings = _for_epochs(settings, job, len(task.rows["train"]))
    if (
        not (run / "scores.json").is_file()
        and adapt.adapt(settings, run, resume=resume, task=task, on_step=_go_on).interrupted
    ):
        raise KeyboardInterrupt
    scores = read_scores(run / "scores.json")
    if protocol.sliding is not None and task.kind == "segmentation":
        scores = _slid(run, task, protocol.sliding, scores)
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    return scores, list(task.notes)


def _settings(encoder: str, wanted: Wanted, job: Job, spec: str, workers: int) -> AdaptRecipe:
    """Put encoder, task and seed into the protocol's recipe."""
    task = job.task
    truth: dict[str, Any] = {"data": spec, "split": task.split}
    truth |= {"masks": task.masks.model_dump()} if task.masks else {}
    truth |= {"boxes": task.boxes.model_dump()} if task.boxes else {}
    backbone = encoders.trained_on(encoder, wanted.gsd_m).model_dump(exclude_unset=True)
    bands = task.bands or opened.bands_of(encoder, wanted)
    image: dict[str, Any] = {"bands": list(bands) if bands else None}
    own = opened.image_of(encoder) if task.normalise == "encoder" else None
    if own is not None:
        image |= {"mean": own.mean, "std": own.std}
    where = f"of protocol {job.protocols[0].name} for task {task.name}"
    return recipe_of(
        job.protocols[0], truth, task.overrides, where, encoder=backbone, image=image, seed=job.seed,
        loader={"workers": workers},
    )  # fmt: skip


def _for_epochs(settings: AdaptRecipe, job: Job, images: int) -> AdaptRecipe:
    """Turn the protocol's epochs into steps, unless the task gives steps itself."""
    protocol = job.protocols[0]
    if protocol.epochs is None or any(each.startswith("steps=") for each in job.task.overrides):
        return settings
    steps = math.ceil(protocol.epochs * images / settings.batch_size)
    optim = settings.optim.model_copy(update={"warmup": protocol.warmup_epochs / protocol.epochs})
    return settings.model_copy(update={"steps": steps, "validate_every": max(1, steps // 20), "optim": optim})


def _slid(run: Path, task: Divided, overlap: float, whole: list[Score]) -> list[Score]:
    """Score a segmenter on its test images at their full size."""
    model = predict.load_adapted(run)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    predictor = cast(Adapter, model.method.to(device)).predict
    masks = task.truth.masks
    assert masks is not None
    matrices = sliding.confusions(
        predictor, task.images, masks, task.rows["test"].tolist(), model.settings.image,
        overlap=overlap, seed=model.settings.seed, device=device,
    )  # fmt: skip
    about = {**whole[0].settings, "window_px": list(model.settings.image.shape_px), "overlap": overlap}
    return dense.score(matrices, task.classes, Made(whole[0].encoder, FINE_TUNED, model.settings.seed, about))
