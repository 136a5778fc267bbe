"""Boxes: the objects in each image of a task, and how they follow the pixels through crops, flips and turns.

Between ``images`` and ``samples``. Read from the table beside a manifest (``data.catalog.boxes``), checked once before
anything starts. On their way they are polygons of four corners, which a crop that is squeezed to another shape keeps
true; a method makes horizontal or oriented boxes of them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor

from terrasieve.boxes.oriented import corners, from_polygons, rectangle
from terrasieve.boxes.overlap import areas, common_area
from terrasieve.errors import UserError
from terrasieve.section import Section

LEAST_PX = 1.0  # a shorter side, in the pixels that the network sees, is no object any more
Crop = tuple[int, int, int, int]


class BoxSettings(Section):
    """Which boxes are to be found; the table is the one beside the manifest, see ``terrasieve boxes``.

    Attributes:
        oriented: find oriented boxes, which the table then has to hold.
        classes: names, in the order of the class numbers; None = all that the table holds, sorted.
        rename: names in the table that are to be others: {Dead: tree, Alive: tree}.
        visible: an object of which a crop leaves less than this share is left out of the sample.
        whole: an oriented object of which its image or window shows less than this share is difficult, since where it
            ends cannot be seen; .7 is what DOTA's own cutting of scenes holds to. 0 = none is.
    """

    oriented: bool = False
    classes: tuple[str, ...] | None = None
    rename: dict[str, str] = Field(default_factory=dict)
    visible: float = Field(default=0.3, gt=0, le=1)
    whole: float = Field(default=0.7, ge=0, le=1)


class Found(NamedTuple):
    """Objects of one image or crop.

    Attributes:
        polygons: (k, 4, 2) float32, x and y of the corners in the pixels that the network sees.
        numbers: (k,) int64, classes.
        difficult: (k,) bool, neither a hit nor a miss in a score.
    """

    polygons: Tensor
    numbers: Tensor
    difficult: Tensor

    def turned(self, mirror_x: bool, mirror_y: bool, quarters: int, height: int, width: int) -> Found:
        """Mirror and turn as ``augment.turn`` does with pixels; turned images are square."""
        x, y = self.polygons.unbind(-1)
        x = width - x if mirror_x else x
        y = height - y if mirror_y else y
        for _ in range(quarters % 4):
            x, y = y, width - x
        return self._replace(polygons=torch.stack([x, y], dim=-1))


@dataclass(frozen=True)
class Boxes:
    """Objects of the rows of ``Images``.

    Attributes:
        polygons: (k, 4, 2) float32 of each row, in pixels of the row's image.
        numbers: (k,) int64 of each row.
        difficult: (k,) bool of each row.
        sizes: (n, 2) int, width and height of each row's image.
        classes: names, in the order of the class numbers.
        settings: what was asked for.
    """

    polygons: list[Tensor]
    numbers: list[Tensor]
    difficult: list[Tensor]
    sizes: np.ndarray
    classes: tuple[str, ...]
    settings: BoxSettings

    def __len__(self) -> int:
        return len(self.polygons)

    def read(self, row: int, crop: Crop | None, height: int, width: int) -> Found:
        """Return a row's objects, or those that a crop (x, y, width, height) shows enough of, at a size in pixels."""
        x, y, w, h = crop or (0, 0, int(self.sizes[row, 0]), int(self.sizes[row, 1]))
        polygons = self.polygons[row]
        seen = torch.ones(len(polygons), dtype=torch.bool)
        if crop is not None and len(polygons):
            seen = _shown(polygons - torch.tensor([float(x), float(y)]), torch.tensor([w, h]), self.settings.visible)
        scaled = (polygons - torch.tensor([float(x), float(y)])) * torch.tensor([width / w, height / h])
        if len(scaled):
            shown = scaled.clamp(torch.zeros(2), torch.tensor([float(width), float(height)]))
            seen &= ((shown.amax(1) - shown.amin(1)) >= LEAST_PX).all(1)
        return Found(scaled[seen], self.numbers[row][seen], self.difficult[row][seen])

    def take(self, rows: np.ndarray) -> Boxes:
        """Return some of the rows, in the order given: (k,) int64."""
        chosen = rows.tolist()
        polygons, numbers, difficult = (
            [values[row] for row in chosen] for values in (self.polygons, self.numbers, self.difficult)
        )
        return replace(self, sizes=self.sizes[rows], polygons=polygons, numbers=numbers, difficult=difficult)


def find_boxes(images: pa.Table, path: Path, settings: BoxSettings) -> tuple[Boxes, list[str]]:
    """Find the boxes of images in the table beside their manifest.

    Args:
        images: rows of a manifest.
        path: of the manifest.
        settings: what is asked for.

    Returns:
        The boxes, and notes on what was left out: boxes without an area or outside their image, images without boxes,
        boxes of images that are not in the manifest.

    Raises:
        UserError: no table, no box for any image, a class that is not among ``classes``, or no oriented boxes.
    """
    from terrasieve.data.catalog import boxes  # a machine without raster libraries trains on pixels in memory

    table = boxes.read(path)
    place, windows, corner = _places(images)
    sizes = np.stack([images[name].to_numpy(zero_copy_only=False) for name in ("width", "height")], axis=1).astype(int)
    every = table.to_pylist()
    pairs = [(at, row) for row in every for at in place.get(row["id"]) or windows.get(row["uri"]) or []]
    rows = [row for _, row in pairs]
    if not rows:
        raise UserError(
            f"task.boxes: none of the {len(every)} boxes beside {path} is of one of its {len(sizes)} images (column "
            "id). Make the table again: terrasieve boxes MANIFEST ANNOTATIONS, or terrasieve datasets NAME."
        )
    names = [settings.rename.get(row["name"], row["name"]) for row in rows]
    classes = _classes(names, settings)
    owner = torch.tensor([at for at, _ in pairs])
    cut = torch.tensor([row["id"] not in place for row in rows])
    polygons = _polygons(rows, settings, path) - (torch.from_numpy(corner)[owner] * cut[:, None])[:, None]
    extent = torch.from_numpy(sizes)[owner].float()[:, None]
    low, high = polygons.amin(1, keepdim=True), polygons.amax(1, keepdim=True)
    flat = ~((areas(from_polygons(polygons)) > 0) & polygons.isfinite().all(2).all(1))
    outside = ((high <= 0) | (low >= extent)).any(2)[:, 0] & ~flat
    good = ~flat & ~outside
    good &= ~cut | _shown(polygons, extent[:, 0], settings.visible)
    numbers = torch.tensor([classes.index(name) for name in names])
    difficult = torch.tensor([bool(row["difficult"]) for row in rows])
    ends_outside = good & ~_shown(polygons, extent[:, 0], settings.whole) if settings.oriented else good & False
    difficult |= ends_outside
    chosen = torch.nonzero(good)[:, 0]
    chosen = chosen[owner[chosen].argsort(stable=True)]
    counts = torch.bincount(owner[chosen], minlength=len(sizes)).tolist()
    notes = [
        f"{count} {what}"
        for count, what in (
            (int(flat.sum()), "boxes without an area are left out"),
            (int((outside & ~cut).sum()), "boxes outside their image are left out"),
            (
                sum(row["id"] not in place and row["uri"] not in windows for row in every),
                "boxes are of images that are not used",
            ),
            (int(ends_outside.sum()), f"boxes show less than {settings.whole:.0%} of their object and are difficult"),
            (counts.count(0), "images have no box: all of them is background"),
        )
        if count
    ]
    parts = [list(torch.split(values[chosen], counts)) for values in (polygons, numbers, difficult)]
    return Boxes(parts[0], parts[1], parts[2], sizes, classes, settings), notes


def _places(images: pa.Table) -> tuple[dict[str, list[int]], dict[str, list[int]], np.ndarray]:
    """Return rows by id, rows that are windows by uri, and (n, 2) float32 where each row begins in its file."""
    place: dict[str, list[int]] = {}
    windows: dict[str, list[int]] = {}
    corner = np.zeros((images.num_rows, 2), np.float32)
    names = (images[name].to_pylist() for name in ("id", "uri", "window"))
    for row, (name, uri, window) in enumerate(zip(*names, strict=True)):
        place.setdefault(name, []).append(row)
        if window is not None:
            windows.setdefault(uri, []).append(row)
            corner[row] = window[:2]
    return place, windows, corner


def _shown(polygons: Tensor, size: Tensor, share: float) -> Tensor:
    """Tell which polygons a window from 0, 0 to ``size``, (2,) or (k, 2), shows at least a share of: (k,) bool."""
    size = size.float().expand(len(polygons), 2)
    outlines = from_polygons(polygons)
    window = torch.cat([size / 2, size, torch.zeros_like(size[:, :1])], dim=1)
    return common_area(outlines, window) >= share * areas(outlines)


def _classes(names: list[str], settings: BoxSettings) -> tuple[str, ...]:
    if settings.classes is None:
        return tuple(sorted(set(names)))
    counts = Counter(names)
    foreign = [(name, count) for name, count in counts.items() if name not in settings.classes]
    if foreign:
        listed = ", ".join(f"{name} ({count} boxes)" for name, count in foreign[:5])
        raise UserError(
            f"task.boxes.classes: {', '.join(settings.classes)} are expected, the table also holds {listed}. Add the "
            "class, or give it another name by task.boxes.rename."
        )
    return settings.classes


def _polygons(rows: list[dict], settings: BoxSettings, path: Path) -> Tensor:  # type: ignore[type-arg]
    if not settings.oriented:
        flat = torch.tensor([row["xyxy"] for row in rows])
        proper = (flat[:, 2:] > flat[:, :2]).all(1, keepdim=True)
        return rectangle(torch.where(proper, flat, torch.nan))  # with its edges swapped it has no area either
    lacking = sum(row["obb"] is None for row in rows)
    if lacking:
        raise UserError(
            f"task.boxes.oriented: {lacking} of {len(rows)} boxes beside {path} are horizontal alone; use "
            "task.boxes.oriented=false and method.name=faster_rcnn."
        )
    return corners(torch.tensor([row["obb"] for row in rows]))
