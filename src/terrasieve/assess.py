"""Assess a run: what ``terrasieve evaluate`` and ``terrasieve export`` do with a run folder.

After ``recipe`` and before ``demo`` and the command line: loads the encoder as it was trained, reads a task's images
once, and scores the encoder beside itself before training and beside raw pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load_file
from torch import Tensor

from terrasieve import export, recipe
from terrasieve.batch import Batch
from terrasieve.data import images as imagery
from terrasieve.data.augment import normalise
from terrasieve.data.loader import LoaderSettings, whole_batches
from terrasieve.errors import UserError
from terrasieve.evaluate import protocol, tasks
from terrasieve.evaluate.parts import images_of
from terrasieve.evaluate.protocol import PRETRAINED, RANDOM_INIT, RAW_PIXELS, Features, Score
from terrasieve.nn.convolution import ConvEncoder, encoder_of
from terrasieve.nn.encoder import Encoder, Pool
from terrasieve.recipe import AdaptRecipe, Recipe


def load_run(run: Path) -> tuple[Recipe | AdaptRecipe, Encoder | ConvEncoder]:
    """Load a run's recipe and its encoder, with the weights of the end of training.

    Raises:
        UserError: if the folder holds no finished or stopped run.
    """
    if not (run / "recipe.yaml").is_file():
        raise UserError(
            f"{run} is not a run folder: it holds no recipe.yaml. Runs are made by terrasieve pretrain and adapt."
        )
    settings = recipe.load(run / "recipe.yaml", (), recipe.kind_of(run / "recipe.yaml"))
    if not (run / "weights.safetensors").is_file():
        raise UserError(
            f"{run} has no weights yet. Let the run end, or stop it with Ctrl-C; a killed one goes on with: "
            f"terrasieve {settings.command} --resume {run}"
        )
    encoder = _encoder(settings)
    encoder.vit.load_state_dict(load_file(run / "weights.safetensors"))
    return settings, encoder


def _encoder(settings: Recipe | AdaptRecipe) -> Encoder | ConvEncoder:
    """Build the encoder of a completed recipe, with random weights wherever its training began."""
    untrained = settings.encoder.model_copy(update={"weights": None})
    return encoder_of(untrained, len(settings.image.bands or ()), settings.image.shape_px, settings.seed).eval()


def evaluate_run(
    run: Path,
    spec: str,
    *,
    split: str | None = None,
    protocols: Sequence[str] = protocol.PROTOCOLS,
    pool: Pool = "mean",
    seed: int = 0,
    workers: int = 1,
    on_images: Callable[[int, int], None] | None = None,
) -> tuple[list[Score], tasks.Task]:
    """Score a run's encoder on a task, beside the untrained encoder and raw pixels, and keep the scores in the run.

    Args:
        run: folder of the run.
        spec: of the task, see :func:`terrasieve.evaluate.tasks.load_task`.
        split: likewise.
        protocols: ``knn``, ``linear``.
        pool: how patch tokens become one vector.
        seed: of the probe's held-out part and of the bootstrap.
        workers: reading processes.
        on_images: called with images done and their total.

    Returns:
        The scores, also written to ``scores.json``, and the task.

    Raises:
        UserError: for anything that a user can mend.
    """
    settings, encoder = load_run(run)
    task = tasks.load_task(spec, split, seed=seed)
    _, images, entries, notes = images_of(task, settings.image.bands)
    features, order = _features(
        images, settings, {PRETRAINED: encoder, RANDOM_INIT: _encoder(settings)}, pool, workers, on_images
    )
    chosen = [entries[row] for row in order.tolist()]
    targets, parts = task.targets[chosen], [task.split[entry] for entry in chosen]
    classes = len(task.class_names)
    about = {"task": spec, "split": split, "pool": pool, "classes": classes, "notes": [*task.notes, *notes]}
    by_encoder = {name: Features.of(values, targets, parts, classes) for name, values in features.items()}
    scores = protocol.run_protocols(by_encoder, protocols, seed, about)
    path = run / "scores.json"
    other = [s for s in (protocol.read_scores(path) if path.exists() else []) if s.settings.get("task") != spec]
    protocol.write_scores([*other, *scores], path)
    return scores, task


def _features(
    images: imagery.Images,
    settings: Recipe | AdaptRecipe,
    encoders: dict[str, Encoder | ConvEncoder],
    pool: Pool,
    workers: int,
    on_images: Callable[[int, int], None] | None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Compute all features in one pass over the images: name -> (N, D), and the row of each image."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    mean, std = (torch.tensor(values, device=device) for values in (settings.image.mean, settings.image.std))
    for encoder in encoders.values():
        encoder.to(device)
    done = 0

    def side_by_side(image_BCHW: Tensor) -> Tensor:
        parts = [encoder.features(image_BCHW, pool).float() for encoder in encoders.values()]
        return torch.cat([*parts, protocol.raw_pixels(image_BCHW)], dim=1)

    def count(batch: Batch) -> None:
        nonlocal done
        done += len(batch)
        if on_images:
            on_images(done, len(images))

    batches = whole_batches(images, settings.image, LoaderSettings(workers=workers))
    on_device = (normalise(batch.to(device), mean, std) for batch in batches)
    together, order = protocol.extract(side_by_side, on_device, on_batch=count)
    widths = [encoder.width for encoder in encoders.values()]
    parts = torch.split(together, [*widths, together.shape[1] - sum(widths)], dim=1)
    return dict(zip([*encoders, RAW_PIXELS], parts, strict=True)), order


def embed_run(
    run: Path, table: pa.Table, *, workers: int = 1, on_images: Callable[[int, int], None] | None = None
) -> np.ndarray:
    """Compute a run's features of a manifest's kept images.

    Args:
        run: folder of the run.
        table: of ``manifest.SCHEMA``; its kept rows need the bands of the run.
        workers: reading processes.
        on_images: called with images done and their total.

    Returns:
        (kept rows, D) float32, the mean patch token; NaN for an image that cannot be read.

    Raises:
        UserError: if the folder holds no run, or the images do not fit it.
    """
    settings, encoder = load_run(run)
    images = imagery.from_table(table, settings.image.bands)
    features, order = _features(images, settings, {PRETRAINED: encoder}, "mean", workers, on_images)
    values = features[PRETRAINED].cpu().numpy()
    result = np.full((len(images), values.shape[1]), np.nan, np.float32)
    result[order.numpy()] = values
    return result


def export_run(run: Path, out: Path, *, overwrite: bool = False) -> None:
    """Write a run's encoder as a folder that timm loads, with a model card.

    Raises:
        UserError: if the run has no weights, or the folder exists and is not to be overwritten.
    """
    settings, encoder = load_run(run)
    image = settings.image
    assert image.mean is not None and image.std is not None and image.bands is not None
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    scores = protocol.read_scores(run / "scores.json") if (run / "scores.json").exists() else []
    export.export(
        encoder.vit,
        out,
        model_name=encoder.name,
        model_args={key: value for key, value in encoder.arguments.items() if key != "global_pool"},
        mean=image.mean,
        std=image.std,
        bands=image.bands,
        size_px=image.shape_px,
        dtype=environment.get("dtype", "uint8"),
        overwrite=overwrite,
        card={
            "title": settings.name,
            "method": settings.method.name,
            "recipe": recipe.dump(settings),
            "manifest_hash": environment["manifest_hash"],
            "manifest_rows": environment["manifest_rows"],
            "commit": environment.get("commit"),
            "scores": [score.to_json() for score in scores],
        },
    )
