"""Detections: what a detector finds in images, as a table of boxes, as GeoJSON where the images lie, and as pictures.

After ``predict``'s loading of a run. Images are looked at whole, at the size that the run was trained with; of large
scenes see ``scenes.found``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from terrasieve import keyed
from terrasieve.boxes.oriented import bounds, corners, from_polygons, rectangle
from terrasieve.data.augment import ImageSettings, normalise
from terrasieve.data.catalog.boxes import SCHEMA
from terrasieve.data.images import Images
from terrasieve.data.samples import WholeSamples, collate
from terrasieve.files import written_aside
from terrasieve.imagery.stretch import display_bands
from terrasieve.imagery.unreadable import UnreadableImage
from terrasieve.train import picture

TABLE, GEOJSON = "predictions.boxes.parquet", "predictions.geojson"
PICTURES = 24
LEAST_SCORE = 0.3  # of boxes that are drawn


def write(
    predict: Callable[..., Tensor],
    images: Images,
    ids: Sequence[str],
    image: ImageSettings,
    classes: Sequence[str],
    out: Path,
    *,
    seed: int,
    device: torch.device,
    on_images: Callable[[int, int], None] | None = None,
) -> tuple[list[Path], list[tuple[str, str]]]:
    """Find objects in all images and write them.

    Args:
        predict: of a detector, in evaluation mode.
        images: what to look at.
        ids: of the images' rows.
        image: settings that the detector was trained with, mean and std among them.
        classes: names, in the order of the class numbers.
        out: folder for ``predictions.boxes.parquet`` (columns of a table of boxes, and ``score``; pixels of the image),
            ``predictions.geojson`` (degrees; objects of images with coordinates), ``pictures/`` of the first 24.
        seed: of what is drawn in inference.
        device: that the detector is on.
        on_images: called with images done and their total.

    Returns:
        Files written, and images that could not be read: (uri, reason).
    """
    mean, std = (torch.tensor(values, device=device) for values in (image.mean, image.std))
    samples = WholeSamples(images, image)
    rows: list[dict[str, Any]] = []
    features: list[dict[str, Any]] = []
    failed: list[tuple[str, str]] = []
    paths = [out / TABLE]
    for row in range(len(images)):
        try:
            batch = collate([samples[row]]).to(device)
        except UnreadableImage as error:
            failed.append((error.uri, error.reason))
            continue
        draw = keyed.generator(seed, "predict", row, device=device)
        with torch.inference_mode():
            found_KF = predict(normalise(batch, mean, std), draw)[0].float().cpu()
        found_KF = found_KF[found_KF[:, -1] >= 0]
        seen = corners(found_KF[:, :-2]) if found_KF.shape[1] == 7 else rectangle(found_KF[:, :-2])
        height, width = image.shape_px
        polygons = seen * (torch.from_numpy(images.windows[row, 2:4].copy()) / torch.tensor([width, height]))
        own = _rows(polygons, found_KF, ids[row], images.uris[row], classes)
        rows += own
        features += _features(polygons, own, images, row)
        if row < PICTURES:
            path = out / "pictures" / f"{row:03d}_{Path(images.uris[row]).stem}.png"
            picture.write(_drawn(batch.image[0].cpu(), images.bands, seen, found_KF), path, smallest_px=512)
            paths.append(path)
        if on_images:
            on_images(row + 1, len(images))
    table = pa.Table.from_pylist(rows, SCHEMA.append(pa.field("score", pa.float32())))
    with written_aside(out / TABLE) as aside:
        pq.write_table(table, aside, compression="zstd")
    if features:
        with written_aside(out / GEOJSON) as aside:
            aside.write_text(json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8")
        paths.insert(1, out / GEOJSON)
    return paths, failed


def _rows(polygons: Tensor, found_KF: Tensor, name: str, uri: str, classes: Sequence[str]) -> list[dict[str, Any]]:
    turned = from_polygons(polygons).tolist() if found_KF.shape[1] == 7 else [None] * len(polygons)
    return [
        {
            "id": name, "uri": uri, "name": classes[int(number)], "xyxy": flat, "obb": obb, "difficult": False,
            "score": score,
        }
        for flat, obb, (score, number) in zip(bounds(polygons).tolist(), turned, found_KF[:, -2:].tolist(), strict=True)
    ]  # fmt: skip


def _features(polygons: Tensor, rows: list[dict[str, Any]], images: Images, row: int) -> list[dict[str, Any]]:
    """Return outlines on the ground, in degrees, of an image that says where it lies."""
    import rasterio
    from pyproj import Transformer

    from terrasieve.imagery import raster

    place = raster.header(images.uris[row])
    if not rows or place.transform is None or place.crs is None:
        return []
    degrees = Transformer.from_crs(place.crs, "OGC:CRS84", always_xy=True)
    pixel, (x0, y0) = rasterio.Affine(*place.transform), images.windows[row, :2].tolist()
    features = []
    for polygon, own in zip(polygons.tolist(), rows, strict=True):
        ring = [degrees.transform(*(pixel * (x + x0, y + y0))) for x, y in [*polygon, polygon[0]]]
        properties = {key: own[key] for key in ("name", "score", "uri")}
        geometry = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "properties": properties, "geometry": geometry})
    return features


def _drawn(image_CHW: Tensor, bands: tuple[str, ...], polygons: Tensor, found_KF: Tensor) -> np.ndarray:
    """Draw what was found: (height, width, 3) uint8."""
    rgb = image_CHW.float()[display_bands(bands)]
    low, high = (torch.quantile(rgb.flatten(1), q, dim=1)[:, None, None] for q in (0.02, 0.98))
    shown = ((rgb - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)[None]
    classes = torch.where(found_KF[:, -2] >= LEAST_SCORE, found_KF[:, -1], -1.0).long()
    drawn = picture.with_outlines(shown, polygons[None], classes[None])[0]
    pixels: np.ndarray = (drawn.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    return pixels
