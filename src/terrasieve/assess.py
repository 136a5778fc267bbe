"""Assess an encoder: what ``terrasieve evaluate`` does with one, and ``terrasieve export`` with a run.

After ``opened`` and before ``demo`` and the command line: reads a task's images once, and scores the encoder beside
itself before training and beside raw pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from terrasieve import export, opened, recipe
from terrasieve.batch import Batch
from terrasieve.data import images as imagery
from terrasieve.data.augment import ImageSettings, normalise
from terrasieve.data.loader import LoaderSettings, whole_batches
from terrasieve.data.masks import MaskSettings
from terrasieve.data.truth import Truth
from terrasieve.evaluate import geography, patches, protocol, tasks
from terrasieve.evaluate.fitted import Reading, fitted
from terrasieve.evaluate.parts import images_of, masked_images
from terrasieve.evaluate.protocol import PRETRAINED, RANDOM_INIT, RAW_PIXELS, Features, Score
from terrasieve.nn.backbones import AnyEncoder
from terrasieve.nn.encoder import Pool
from terrasieve.opened import OWN, Opened, Wanted, load_run
from terrasieve.train.settings import TaskSettings

GEOGRAPHY = "geography.json"  # in the run's folder: rank correlations of the task that was scored last


def evaluate_run(
    run: str | Path,
    spec: str,
    *,
    wanted: Wanted = Wanted(),
    split: str | None = None,
    protocols: Sequence[str] = protocol.PROTOCOLS,
    pool: Pool = "mean",
    seed: int = 0,
    workers: int = 1,
    on_images: Callable[[int, int], None] | None = None,
    reading: Reading = Reading(),
) -> tuple[list[Score], tasks.Task]:
    """Score an encoder on a task, beside the untrained encoder and raw pixels, and keep a run's scores in the run.

    Args:
        run: folder of the run, or another encoder, see :func:`terrasieve.opened.open_encoder`.
        wanted: of another encoder, what it does not say itself.
        spec: of the task, see :func:`terrasieve.evaluate.tasks.load_task`.
        split: likewise.
        protocols: ``knn``, ``linear``.
        pool: how patch tokens become one vector.
        seed: of the probe's held-out part and of the bootstrap.
        workers: reading processes.
        on_images: called with images done and their total.
        reading: how the images are read.

    Returns:
        The scores, of a run also written to its ``scores.json``, and the task.

    Raises:
        UserError: for anything that a user can mend.
    """
    protocol.check_protocols(protocols)
    bands = opened.bands_of(run, wanted)
    task = tasks.load_task(spec, split, seed=seed)
    _, images, entries, notes = images_of(task, reading.bands or bands)
    parts = [task.split[entry] for entry in entries]
    found = _fitted(run, images, wanted, parts, reading, seed)
    features, order = _features(images, found.image, beside(found), pool, workers, on_images)
    targets = task.targets[[entries[row] for row in order.tolist()]]
    parts = [parts[row] for row in order.tolist()]
    classes = len(task.class_names)
    about: dict[str, Any] = {"task": spec, "split": split, "pool": pool, "classes": classes}
    about["notes"] = [*task.notes, *found.notes, *notes]
    by_encoder = {name: Features.of(values, targets, parts, classes) for name, values in features.items()}
    scores = protocol.run_protocols(by_encoder, protocols, seed, about, k=reading.k, temperature=reading.temperature)
    if not reading.keep or not opened.is_run(run):
        return scores, task
    _keep_scores(Path(run), spec, scores)
    test = [row for row, part in zip(order.tolist(), parts, strict=True) if part == "test"]
    of_test = {name: values[[part == "test" for part in parts]] for name, values in features.items()}
    correlations = geography.correlations(of_test, images.lon[test], images.lat[test], seed=seed)
    if correlations:
        made_with = {"task": spec, "split": split, "pool": pool, "max_km": geography.MAX_KM, "seed": seed}
        geography.write(correlations, Path(run) / GEOGRAPHY, made_with)
    else:
        (Path(run) / GEOGRAPHY).unlink(missing_ok=True)  # of another task
    return scores, task


def _fitted(
    run: str | Path, images: imagery.Images, wanted: Wanted, parts: Sequence[str], reading: Reading, seed: int
) -> Opened:
    """Open an encoder and have the images read for it as is asked for."""
    train = [row for row, part in enumerate(parts) if part == "train"]
    found = opened.open_encoder(run, images, wanted, train=train, seed=seed)
    image = fitted(found.image, images, parts, reading, seed)
    told = OWN if reading.own_statistics else found.statistics
    return found._replace(image=image, notes=(*found.notes, *([told] if told else [])))


def beside(found: Opened) -> dict[str, AnyEncoder]:
    """Name an encoder and the untrained one, as scores do."""
    if found.untrained is None:
        return {RANDOM_INIT: found.encoder}
    return {PRETRAINED: found.encoder, RANDOM_INIT: found.untrained()}


def evaluate_masks(
    run: str | Path,
    spec: str,
    masks: MaskSettings,
    *,
    wanted: Wanted = Wanted(),
    split: str | None = None,
    seed: int = 0,
    workers: int = 1,
    on_images: Callable[[int, int], None] | None = None,
    reading: Reading = Reading(),
) -> list[Score]:
    """Score an encoder on images with masks by k-NN of patches, beside the untrained encoder and raw pixels.

    Args:
        spec: ``manifest:PATH`` of the images; the rest as of :func:`evaluate_run`.
        masks: where the masks are and what their numbers mean.

    Returns:
        The scores, of a run also written to its ``scores.json``.
    """
    task = TaskSettings(data=spec, split=split, masks=masks)
    _, images, truth, parts, notes = masked_images(task, reading.bands or opened.bands_of(run, wanted))
    rows = [row for row, part in enumerate(parts) if part != "val"]
    found = _fitted(run, images, wanted, parts, reading, seed)
    encoders, done = beside(found), 0

    def maps(image_BCHW: Tensor) -> dict[str, Tensor]:
        learnt = {name: patches.feature_map(one, image_BCHW) for name, one in encoders.items()}
        grid = next(iter(learnt.values())).shape[-2:]
        return {**learnt, RAW_PIXELS: patches.raw_map(image_BCHW, (grid[0], grid[1]))}

    def count(batch: Batch) -> None:
        nonlocal done
        done += len(batch)
        if on_images:
            on_images(done, len(rows))

    loader = LoaderSettings(workers=workers)
    batches = whole_batches(images, found.image, loader, truth=Truth(masks=truth), rows=rows)
    ready = _on_device(batches, found.image, encoders)
    sampled = patches.sample(maps, ready, len(truth.classes), patches.budget(parts), seed, count)
    about = {"task": spec, "split": split, "classes": len(truth.classes), "notes": [*found.notes, *notes]}
    scores = patches.score(sampled, parts, truth.classes, seed, about, reading.k, reading.temperature)
    if reading.keep and opened.is_run(run):
        _keep_scores(Path(run), spec, scores)
    return scores


def _keep_scores(run: Path, spec: str, scores: Sequence[Score]) -> None:
    """Put scores in the place of earlier ones of the same task."""
    path = run / "scores.json"
    other = [s for s in (protocol.read_scores(path) if path.exists() else []) if s.settings.get("task") != spec]
    protocol.write_scores([*other, *scores], path)


def _on_device(batches: Iterable[Batch], image: ImageSettings, encoders: Mapping[str, AnyEncoder]) -> Iterator[Batch]:
    """Yield batches normalised on the device to which the encoders are moved."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    mean, std = (torch.tensor(values, device=device) for values in (image.mean, image.std))
    for encoder in encoders.values():
        encoder.to(device)
    return (normalise(batch.to(device), mean, std) for batch in batches)


def _features(
    images: imagery.Images,
    image: ImageSettings,
    encoders: Mapping[str, AnyEncoder],
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

    batches = whole_batches(images, image, LoaderSettings(workers=workers))
    together, order = protocol.extract(side_by_side, _on_device(batches, image, encoders), on_batch=count)
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
    encoders = {PRETRAINED: encoder, RANDOM_INIT: opened.untrained(settings)}
    features, order = _features(images, settings.image, encoders, "mean", workers, on_images)
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
    features, order = _features(images, settings.image, {PRETRAINED: encoder}, "mean", workers, on_images)
    values = features[PRETRAINED].cpu().numpy()
    result = np.full((len(images), values.shape[1]), np.nan, np.float32)
    result[order.numpy()] = values
    return result


def export_run(run: Path, out: Path, *, overwrite: bool = False, formats: tuple[str, ...] = ()) -> None:
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
        formats=formats,
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
