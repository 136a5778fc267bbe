"""Predict: what ``terrasieve predict`` does with a fine-tuned run and images that nobody has labelled.

After ``adapt``, whose run folder it reads: a segmentation writes a map of every image, a GeoTIFF that lies where the
image lies; a classification writes one CSV; a detection a table of boxes, GeoJSON and pictures. Whole scenes:
``predict_scene``.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast

import pyarrow.compute as pc
import torch
from safetensors.torch import load_file
from torch import Tensor

from terrasieve import keyed, manifest, methods, recipe
from terrasieve.batch import Batch
from terrasieve.data import images as imagery
from terrasieve.data.augment import normalise
from terrasieve.data.images import Images
from terrasieve.data.samples import WholeSamples, collate
from terrasieve.errors import UserError
from terrasieve.evaluate import detections, maps
from terrasieve.files import written_aside
from terrasieve.imagery.unreadable import UnreadableImage
from terrasieve.methods import Adapter
from terrasieve.nn.encoder import Encoder
from terrasieve.recipe import AdaptRecipe


class Adapted(NamedTuple):
    """A fine-tuned model, its completed recipe, its classes, and the size in pixels of the images it was trained on."""

    settings: AdaptRecipe
    method: torch.nn.Module
    classes: tuple[str, ...]
    image_px: tuple[int, int]


class Written(NamedTuple):
    """What was written, and the images that could not be read: (uri, reason)."""

    paths: list[Path]
    failed: list[tuple[str, str]]


def load_adapted(run: Path) -> Adapted:
    """Load a fine-tuned run's model in evaluation mode.

    Raises:
        UserError: if the folder holds no run of ``terrasieve adapt`` that has ended or stopped.
    """
    for name in ("recipe.yaml", "model.safetensors", "environment.json"):
        if not (run / name).is_file():
            raise UserError(
                f"{run} holds no {name}: it is no run of terrasieve adapt, or one that has not stopped yet."
            )
    settings = recipe.load(run / "recipe.yaml", (), AdaptRecipe)
    about = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    drop = settings.method.drop
    if drop.cached and drop.when != "training" and drop.of == "embeddings":
        raise UserError(
            f"{run} drops patches by scores of the embeddings that training began with, computed once for its own "
            "images (method.drop.cached); for others train with cached=false or of=pixels."
        )
    method = settings.method.model_copy(update={"drop": drop.model_copy(update={"cached": False})})
    encoder = settings.encoder.model_copy(update={"weights": None})
    bands = settings.image.bands or ()
    built = methods.build(method, Encoder(encoder, len(bands), settings.image.shape_px, settings.seed), settings.seed)
    built.load_state_dict(load_file(run / "model.safetensors"))
    height, width = about["image_px"]
    return Adapted(settings, built.eval(), tuple(about["classes"]), (height, width))


def predict(
    run: Path,
    source: Path,
    out: Path,
    *,
    window_px: tuple[int, int] | None = None,
    overlap: float = 0.25,
    on_images: Callable[[int, int], None] | None = None,
) -> Written:
    """Predict the kept images of a manifest.

    Args:
        run: folder of a fine-tuning.
        source: manifest.
        out: folder for maps, named as the images are, or for ``predictions.csv``, or of a detection for what
            ``evaluate.detections.write`` writes.
        window_px: height and width of the windows that a map is made of; None = the size of the images that the run
            was trained on, so that what the network sees is as large on the ground as it was then.
        overlap: share of a window's side, in [0, 1).
        on_images: called with images done and their total.

    Raises:
        UserError: for anything that a user can mend. Images that cannot be read are returned, not raised.
    """
    model = load_adapted(run)
    table = manifest.read(source)
    images = imagery.from_table(table, model.settings.image.bands)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.method.to(device)
    if model.settings.task.boxes is not None:
        ids = table.filter(pc.fill_null(table["keep"], False))["id"].to_pylist()
        return Written(
            *detections.write(
                cast(Adapter, model.method).predict, images, ids, model.settings.image, model.classes, out,
                seed=model.settings.seed, device=device, on_images=on_images,
            )
        )  # fmt: skip
    if model.settings.task.masks is None:
        return _classify(model, images, out / "predictions.csv", device, on_images)
    paths, failed = [], []
    predictor = cast(Adapter, model.method).predict
    for row, path in enumerate(_map_paths(images, out)):
        parts = maps.predicted_parts(
            predictor, images, row, model.settings.image, window_px=window_px or model.image_px, overlap=overlap,
            seed=model.settings.seed, device=device,
        )  # fmt: skip
        try:
            maps.write_geotiff(parts, images, row, model.classes, path)
            paths.append(path)
        except UnreadableImage as error:
            failed.append((error.uri, error.reason))
        if on_images:
            on_images(row + 1, len(images))
    return Written(paths, failed)


def _map_paths(images: Images, out: Path) -> list[Path]:
    """Name a map after each image, below the folder that they all lie in; windows of a file by their corner."""
    root = os.path.commonpath([str(Path(uri).parent) for uri in images.uris])
    paths = []
    for uri, (x, y, _, _), whole in zip(images.uris, images.windows.tolist(), images.whole, strict=True):
        name = Path(os.path.relpath(uri, root)).with_suffix("")
        paths.append(out / name.with_name(f"{name.name}.tif" if whole else f"{name.name}_{x}_{y}.tif"))
    twice = next((path for path in paths if paths.count(path) > 1), None) if len(set(paths)) < len(paths) else None
    if twice is not None:
        raise UserError(f"Two images would have the map {twice}; predict them by manifests of their own.")
    return paths


def _classify(
    model: Adapted, images: Images, path: Path, device: torch.device, on_images: Callable[[int, int], None] | None
) -> Written:
    """Write a line per image: uri, window, the classes that are predicted, and the probability of each."""
    settings, failed = model.settings, []
    several = settings.method.name == "rvit" and settings.method.multilabel
    mean, std = (torch.tensor(values, device=device) for values in (settings.image.mean, settings.image.std))
    samples = WholeSamples(images, settings.image)
    with written_aside(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["uri", "window", "predicted", *model.classes])
        for row in range(len(images)):
            try:
                batch = normalise(collate([samples[row]]).to(device), mean, std)
            except UnreadableImage as error:
                failed.append((error.uri, error.reason))
                continue
            chances = _probabilities(model, batch, row, several)
            said = [name for name, chance in zip(model.classes, chances, strict=True) if chance > 0.5]
            if not several:
                said = [model.classes[int(torch.tensor(chances).argmax())]]
            window = "" if images.whole[row] else " ".join(map(str, images.windows[row].tolist()))
            writer.writerow([images.uris[row], window, "|".join(said), *(f"{chance:.4f}" for chance in chances)])
            if on_images:
                on_images(row + 1, len(images))
    return Written([path], failed)


def _probabilities(model: Adapted, batch: Batch, row: int, several: bool) -> list[float]:
    draw = keyed.generator(model.settings.seed, "predict", row, device=batch.image.device)
    with torch.inference_mode():
        logits_C: Tensor = cast(Adapter, model.method).predict(batch, draw)[0].float().cpu()
    chances: list[float] = (logits_C.sigmoid() if several else logits_C.softmax(0)).tolist()
    return chances
