"""Assess a run: what ``terrasieve evaluate`` and ``terrasieve export`` do with a run folder.

After ``recipe`` and before ``demo`` and the command line: loads the encoder as it was trained, reads a task's images
once, and scores the encoder beside itself before training and beside raw pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from terrasieve.data.masks import MaskSettings
from terrasieve.data.truth import Truth
from terrasieve.errors import UserError
from terrasieve.evaluate import geography, patches, protocol, tasks
from terrasieve.evaluate.parts import images_of, masked_images
from terrasieve.evaluate.protocol import PRETRAINED, RANDOM_INIT, RAW_PIXELS, Features, Score
from terrasieve.nn.convolution import ConvEncoder, encoder_of
from terrasieve.nn.encoder import Encoder, Pool
from terrasieve.recipe import AdaptRecipe, Recipe
from terrasieve.train.settings import TaskSettings

GEOGRAPHY = "geography.json"  # in the run's folder: rank correlations of the task that was scored last


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
    _keep_scores(run, spec, scores)
    test = [row for row, part in zip(order.tolist(), parts, strict=True) if part == "test"]
    of_test = {name: values[[part == "test" for part in parts]] for name, values in features.items()}
    found = geography.correlations(of_test, images.lon[test], images.lat[test], seed=seed)
    if found:
        made_with = {"task": spec, "split": split, "pool": pool, "max_km": geography.MAX_KM, "seed": seed}
        geography.write(found, run / GEOGRAPHY, made_with)
    else:
        (run / GEOGRAPHY).unlink(missing_ok=True)  # of another task
    return scores, task


def evaluate_masks(
    run: Path,
    spec: str,
    masks: MaskSettings,
    *,
    split: str | None = None,
    seed: int = 0,
    workers: int = 1,
    on_images: Callable[[int, int], None] | None = None,
) -> list[Score]:
    """Score a run's encoder on images with masks by k-NN of patches, beside the untrained encoder and raw pixels.

    Args:
        run: folder of the run.
        spec: ``manifest:PATH`` of the images.
        masks: where the masks are and what their numbers mean.
        split: see :func:`terrasieve.evaluate.tasks.load_task`.
        seed: of the sample of patches and of the bootstrap.
        workers: reading processes.
        on_images: called with images done and their total.

    Returns:
        The scores, also written to ``scores.json``.

    Raises:
        UserError: for anything that a user can mend.
    """
    settings, encoder = load_run(run)
    task = TaskSettings(data=spec, split=split, masks=masks)
    _, images, found, parts, notes = masked_images(task, settings.image.bands)
    rows = [row for row, part in enumerate(parts) if part != "val"]
    encoders = {PRETRAINED: encoder, RANDOM_INIT: _encoder(settings)}
    done = 0

    def maps(image_BCHW: Tensor) -> dict[str, Tensor]:
        learnt = {name: patches.feature_map(one, image_BCHW) for name, one in encoders.items()}
        grid = learnt[PRETRAINED].shape[-2:]
        return {**learnt, RAW_PIXELS: patches.raw_map(image_BCHW, (grid[0], grid[1]))}

    def count(batch: Batch) -> None:
        nonlocal done
        done += len(batch)
        if on_images:
            on_images(done, len(rows))

    loader = LoaderSettings(workers=workers)
    batches = whole_batches(images, settings.image, loader, truth=Truth(masks=found), rows=rows)
    ready = _on_device(batches, settings, encoders)
    sampled = patches.sample(maps, ready, len(found.classes), patches.budget(parts), seed, count)
    about = {"task": spec, "split": split, "classes": len(found.classes), "notes": notes}
    scores = patches.score(sampled, parts, found.classes, seed, about)
    _keep_scores(run, spec, scores)
    return scores


def _keep_scores(run: Path, spec: str, scores: Sequence[Score]) -> None:
    """Put scores in the place of earlier ones of the same task."""
    path = run / "scores.json"
    other = [s for s in (protocol.read_scores(path) if path.exists() else []) if s.settings.get("task") != spec]
    protocol.write_scores([*other, *scores], path)


def _on_device(
    batches: Iterable[Batch], settings: Recipe | AdaptRecipe, encoders: dict[str, Encoder | ConvEncoder]
) -> Iterator[Batch]:
    """Yield batches normalised on the device to which the encoders are moved."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    mean, std = (torch.tensor(values, device=device) for values in (settings.image.mean, settings.image.std))
    for encoder in encoders.values():
        encoder.to(device)
    return (normalise(batch.to(device), mean, std) for batch in batches)


def _features(
    images: imagery.Images,
    settings: Recipe | AdaptRecipe,
    encoders: dict[str, Encoder | ConvEncoder],
    pool: Pool,
    workers: int,
    on_images: Callable[[int, int], None] | None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Compute all features in one pass over the images: name -> (N, D), and the row of each image."""
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
    together, order = protocol.extract(side_by_side, _on_device(batches, settings, encoders), on_batch=count)
    widths = [encoder.width for encoder in encoders.values()]
    parts = torch.split(together, [*widths, together.shape[1] - sum(widths)], dim=1)
    return dict(zip([*encoders, RAW_PIXELS], parts, strict=True)), order


def features_beside(
    run: Path, table: pa.Table, *, workers: int = 1, on_images: Callable[[int, int], None] | None = None
) -> dict[str, Tensor]:
    """Compute features of a manifest's kept images by a run's encoder, the same untrained, and as raw pixels.

    Args:
        run: folder of the run.
        table: of ``manifest.SCHEMA``; its kept rows need the bands of the run.
        workers: reading processes.
        on_images: called with images done and their total.

    Returns:
        Name -> (kept rows, D) float32, in the manifest's order.
    """
    settings, encoder = load_run(run)
    images = imagery.from_table(table, settings.image.bands)
    encoders = {PRETRAINED: encoder, RANDOM_INIT: _encoder(settings)}
    features, order = _features(images, settings, encoders, "mean", workers, on_images)
    return {name: values[order.argsort()] for name, values in features.items()}


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
