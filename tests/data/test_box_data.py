"""Boxes of a task: crops, flips and turns that carry them along, and mistakes; their files: test_box_files."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import rasterio
import torch
from torch import Tensor

from terrasieve import manifest
from terrasieve.boxes.oriented import bounds, from_polygons
from terrasieve.curate.scan import scan
from terrasieve.data import images as imagery
from terrasieve.data.augment import ImageSettings
from terrasieve.data.boxes import Boxes, BoxSettings, find_boxes
from terrasieve.data.catalog import boxes as tables
from terrasieve.data.samples import TrainSamples, WholeSamples, collate
from terrasieve.data.truth import Truth
from terrasieve.errors import UserError

SIZE = 120


@pytest.fixture
def bright(tmp_path: Path) -> Path:
    """A manifest of 6 dark images with one bright turned rectangle each, and their boxes."""
    rows: list[tuple[str, str, tables.Box]] = []
    for index in range(6):
        angle, cx, cy = 0.5 * index - 1.2, 50.0 + 4 * index, 70.0 - 3 * index
        y, x = (v + 0.5 for v in np.mgrid[:SIZE, :SIZE])
        along = (x - cx) * math.cos(angle) + (y - cy) * math.sin(angle)
        across = (y - cy) * math.cos(angle) - (x - cx) * math.sin(angle)
        pixels = np.where((abs(along) < 20) & (abs(across) < 6), 250, 10).astype(np.uint8)
        path = tmp_path / "images" / f"{index}.tif"
        path.parent.mkdir(exist_ok=True)
        with rasterio.open(path, "w", driver="GTiff", width=SIZE, height=SIZE, count=1, dtype="uint8") as file:
            file.write(pixels[None])
        corner = [
            (cx + u * math.cos(angle) - v * math.sin(angle), cy + u * math.sin(angle) + v * math.cos(angle))
            for u, v in ((-20, -6), (20, -6), (20, 6), (-20, 6))
        ]
        rows.append((manifest.row_id(str(path)), str(path), tables.oriented("ship", corner)))
    manifest.write(scan(tmp_path / "images", labels="none").table, tmp_path / "m.parquet")
    tables.write(tables.to_table(rows), tmp_path / "m.parquet")
    return tmp_path / "m.parquet"


def truth_of(path: Path, **settings: Any) -> tuple[Boxes, list[str]]:
    return find_boxes(manifest.read(path), path, BoxSettings(**settings))


def outline_of(image_HW: Tensor) -> Tensor:
    """The box around the bright pixels."""
    y, x = torch.nonzero(image_HW > 130, as_tuple=True)
    corner = torch.stack([x, y], 1).float()
    return torch.cat([corner.amin(0), corner.amax(0) + 1])


@pytest.mark.parametrize("oriented", [False, True])
def test_boxes_follow_the_pixels(bright: Path, oriented: bool) -> None:
    boxes, notes = truth_of(bright, oriented=oriented)
    assert notes == [] and boxes.classes == ("ship",)
    images = imagery.from_table(manifest.read(bright))
    samples = TrainSamples(images, ImageSettings(size_px=96), 0, Truth(boxes=boxes))
    compared = 0
    for epoch in range(12):
        for row in range(len(images)):
            sample = samples[epoch, row]
            found = sample["objects"].polygons
            lit = (sample["image"][0] > 130).sum()
            if not len(found):
                continue
            seen = bounds(found)[0].clamp(0, 96)
            if (bounds(found)[0] != seen).any():
                continue  # cut by the crop: an outline of what is left is another one
            assert (seen - outline_of(sample["image"][0])).abs().max() < 2.5
            if oriented:
                assert abs(float(from_polygons(found)[0, 2:4].prod() / lit) - 1) < 0.2
            compared += 1
    assert compared > 20


def test_a_crop_keeps_the_objects_that_it_shows_enough_of() -> None:
    square = torch.tensor([[[10.0, 10], [30, 10], [30, 30], [10, 30]]])
    one = [torch.zeros(1, dtype=torch.long)], [torch.zeros(1, dtype=torch.bool)]
    boxes = Boxes([square], *one, sizes=np.array([[100, 100]]), classes=("a",), settings=BoxSettings(visible=0.5))
    assert len(boxes.read(0, (19, 0, 50, 50), 50, 50).polygons) == 1  # 11 of 20 columns
    assert len(boxes.read(0, (21, 0, 50, 50), 50, 50).polygons) == 0
    assert len(boxes.read(0, (60, 60, 40, 40), 40, 40).polygons) == 0
    scaled = boxes.read(0, (0, 0, 50, 40), 80, 200).polygons
    assert bounds(scaled).tolist() == [[40, 20, 120, 60]]
    assert len(boxes.read(0, None, 4, 4).polygons) == 0, "less than a pixel is no object"
    assert bounds(boxes.read(0, None, 200, 100).polygons).tolist() == [[10, 20, 30, 60]]


def test_turned_objects_are_where_turned_pixels_are() -> None:
    from terrasieve.data.augment import turn

    image = torch.zeros(1, 40, 40)
    image[0, 5:9, 20:31] = 200
    square = torch.tensor([[[20.0, 5], [31, 5], [31, 9], [20, 9]]])
    boxes = Boxes(
        [square], [torch.zeros(1).long()], [torch.zeros(1).bool()], np.array([[40, 40]]), ("a",), BoxSettings()
    )
    for mirror_x in (False, True):
        for mirror_y in (False, True):
            for quarters in range(4):
                found = boxes.read(0, None, 40, 40).turned(mirror_x, mirror_y, quarters, 40, 40)
                expected = outline_of(turn(image, mirror_x, mirror_y, quarters)[0])
                assert torch.equal(bounds(found.polygons)[0], expected)


def test_batches_are_filled_up(bright: Path) -> None:
    boxes, _ = truth_of(bright)
    boxes.polygons[2] = boxes.polygons[2][:0]
    boxes.numbers[2] = boxes.numbers[2][:0]
    boxes.difficult[2] = boxes.difficult[2][:0]
    images = imagery.from_table(manifest.read(bright))
    whole = WholeSamples(images, ImageSettings(size_px=120), Truth(boxes=boxes))
    batch = collate([whole[row] for row in range(6)])
    assert batch.objects is not None and batch.objects.shape == (6, 1, 4, 2)
    assert batch.object_classes is not None and batch.object_classes[:, 0].tolist() == [0, 0, -1, 0, 0, 0]
    boxes.difficult[4][:] = True
    again = collate([whole[row] for row in range(6)])
    assert again.object_difficult is not None
    assert again.object_difficult[:, 0].tolist() == [False, False, False, False, True, False]
    part = batch.part(2, 4)
    assert part.object_classes is not None and part.object_classes[:, 0].tolist() == [-1, 0]


def test_windows_get_their_share(bright: Path, tmp_path: Path) -> None:
    rows = manifest.read(bright).to_pylist()
    halves = []
    for row in rows:
        for x in (0, 60):
            window = [x, 0, 60, SIZE]
            halves.append({**row, "id": manifest.row_id(row["uri"], window), "window": window, "width": 60})
    path = tmp_path / "halves.parquet"
    manifest.write(manifest.rows_to_table(halves), path)
    whole, _ = truth_of(bright)
    tables.path_beside(path).write_bytes(tables.path_beside(bright).read_bytes())
    boxes, notes = truth_of(path)
    for row in range(6):
        full = whole.polygons[row][0]
        for side in range(2):
            shown = boxes.polygons[2 * row + side]
            left, right = float(full[:, 0].min()), float(full[:, 0].max())
            share = (min(right, 60 * side + 60) - max(left, 60 * side)) / (right - left)
            assert len(shown) == (share >= 0.3)
            if len(shown):
                assert torch.allclose(shown[0] + torch.tensor([60.0 * side, 0]), full)
    assert any("no box" in note for note in notes)


def test_oriented_objects_whose_ends_cannot_be_seen_are_difficult(bright: Path) -> None:
    """Shares by counting points of the box that lie within the image."""

    def push(rows: list[dict[str, Any]]) -> None:
        for index, row in enumerate(rows):
            corners = tables.oriented(
                "ship", [(-20 + 8 * index + u, 60 + v) for u, v in ((0, 0), (30, 0), (30, 10), (0, 10))]
            )
            row["obb"], row["xyxy"] = list(corners.obb or ()), list(corners.xyxy)

    replaced(bright, push)  # 10, 18, 26, 30, 30 and 30 of 30 columns are in the image
    boxes, notes = truth_of(bright, oriented=True)
    assert [bool(own[0]) for own in boxes.difficult] == [True, True, False, False, False, False]
    assert any(note.startswith("2 boxes show less than 70% of their object") for note in notes)
    assert not any(own.any() for own in truth_of(bright, oriented=True, whole=0)[0].difficult)
    assert not any(own.any() for own in truth_of(bright)[0].difficult), "what is seen of an upright box is a box"
    many = truth_of(bright, oriented=True, whole=0.9)[0].difficult
    assert [bool(own[0]) for own in many] == [True, True, True, False, False, False]


def replaced(path: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    rows = tables.read(path).to_pylist()
    change(rows)
    tables.write(pa.Table.from_pylist(rows, tables.SCHEMA), path)


def test_bad_boxes_are_left_out_and_counted(bright: Path) -> None:
    def spoil(rows: list[dict[str, Any]]) -> None:
        rows[0]["xyxy"] = [10, 10, 10, 40]
        rows[1]["xyxy"] = [40, 10, 10, 40]
        rows[2]["xyxy"] = [200, 10, 240, 40]
        rows[3]["xyxy"] = [float("nan"), 10, 240, 40]
        rows.append({**rows[4], "id": "0" * 16, "uri": "elsewhere.tif"})

    replaced(bright, spoil)
    boxes, notes = truth_of(bright)
    assert [len(own) for own in boxes.polygons] == [0, 0, 0, 0, 1, 1]
    assert notes == [
        "3 boxes without an area are left out",
        "1 boxes outside their image are left out",
        "1 boxes are of images that are not used",
        "4 images have no box: all of them is background",
    ]


def test_mistakes_are_named(bright: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ship \(6 boxes\)"):
        truth_of(bright, classes=("plane",))
    assert truth_of(bright, classes=("boat", "plane"), rename={"ship": "boat"})[0].classes == ("boat", "plane")
    replaced(bright, lambda rows: rows[0].update(obb=None))
    with pytest.raises(UserError, match=r"1 of 6 boxes .* horizontal alone"):
        truth_of(bright, oriented=True)
    replaced(bright, lambda rows: [row.update(id="0" * 16) for row in rows])  # type: ignore[func-returns-value]
    with pytest.raises(UserError, match="none of the 6 boxes"):
        truth_of(bright)
    tables.path_beside(bright).unlink()
    with pytest.raises(UserError, match="has no boxes beside it"):
        truth_of(bright)
