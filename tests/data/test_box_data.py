"""Boxes of a task: files of every form, crops, flips and turns that carry them along, and mistakes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import rasterio
import torch
from pyproj import Transformer
from torch import Tensor

from terrasieve import manifest
from terrasieve.boxes.oriented import bounds, from_polygons
from terrasieve.boxes.overlap import iou_of_pairs
from terrasieve.curate import box_files
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


BOX = [12.0, 20.0, 40.0, 33.0]


def written(folder: Path, form: str) -> None:
    left, top, right, bottom = BOX
    if form == "coco":
        content: dict[str, Any] = {
            "images": [{"id": 7, "file_name": "images/1.tif"}],
            "categories": [{"id": 3, "name": "ship"}],
            "annotations": [{"image_id": 7, "category_id": 3, "bbox": [left, top, right - left, bottom - top]}],
        }
        (folder / "annotations.json").write_text(json.dumps(content))
    elif form == "csv":
        (folder / "boxes.csv").write_text(
            f"image_path,label,xmax,ymin,ymax,xmin\nimages/1.tif,ship,{right},{top},{bottom},{left}\n"
        )
    elif form == "voc":
        corner = "".join(f"<{n}>{v}</{n}>" for n, v in zip(("xmin", "ymin", "xmax", "ymax"), BOX, strict=True))
        text = f"<object><name>ship</name><difficult>1</difficult><bndbox>{corner}</bndbox></object>"
        (folder / "images" / "1.xml").write_text(f"<annotation><filename>1.tif</filename>{text}</annotation>")
    elif form == "dota":
        (folder / "labelTxt").mkdir()
        (folder / "readme.txt").write_text("Ships of one harbour.\n")
        (folder / "labelTxt" / "0.txt").write_text("imagesource:GoogleEarth\ngsd:0.5\n")
        text = f"{left} {top} {right} {top} {right} {bottom} {left} {bottom} ship 1"
        (folder / "labelTxt" / "1.txt").write_text(f"imagesource:GoogleEarth\ngsd:0.5\n{text}\n")
    else:
        to_degrees = Transformer.from_crs("EPSG:32721", "OGC:CRS84", always_xy=True)
        ring = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
        ground = [to_degrees.transform(300000 + 10 * x, 6100000 - 10 * y) for x, y in ring]
        feature = {"type": "Feature", "properties": {"label": "ship"}}
        feature["geometry"] = {"type": "Polygon", "coordinates": [ground]}  # type: ignore[assignment]
        text = json.dumps({"type": "FeatureCollection", "features": [feature]})
        (folder / "images" / "1.geojson").write_text(text)


@pytest.mark.parametrize("form", ["coco", "csv", "voc", "geojson", "dota"])
def test_annotations_of_every_form(tmp_path: Path, form: str) -> None:
    place = {"crs": "EPSG:32721", "transform": rasterio.transform.from_origin(300000, 6100000, 10, 10)}
    for index in range(2):
        path = tmp_path / "images" / f"{index}.tif"
        path.parent.mkdir(exist_ok=True)
        with rasterio.open(path, "w", driver="GTiff", width=64, height=64, count=1, dtype="uint8", **place) as file:
            file.write(np.full((1, 64, 64), 7, np.uint8))
    written(tmp_path, form)
    manifest.write(scan(tmp_path / "images", labels="none").table, tmp_path / "m.parquet")
    path, table, notes = box_files.write_beside(tmp_path / "m.parquet", [tmp_path])
    assert path.name == "m.boxes.parquet" and notes == []
    [row] = table.to_pylist()
    assert row["name"] == "ship" and Path(row["uri"]).name == "1.tif" and row["difficult"] == (form in ("voc", "dota"))
    assert row["xyxy"] == pytest.approx(BOX, abs=1e-3)
    if form in ("geojson", "dota"):
        expected = torch.tensor([26.0, 26.5, 28, 13, 0])
        assert iou_of_pairs(torch.tensor(row["obb"]), expected) > 0.999
    boxes, notes = truth_of(tmp_path / "m.parquet")
    assert [len(own) for own in boxes.polygons] == [0, 1]


def test_annotations_are_found_beside_images_behind_a_link(tmp_path: Path) -> None:
    """A manifest names files as its owner does, by the link; the two images have one name and their own folders."""
    for name in ("a", "b"):
        folder = tmp_path / "disk" / name
        folder.mkdir(parents=True)
        with rasterio.open(
            folder / "image.tif", "w", driver="GTiff", width=64, height=64, count=1, dtype="uint8"
        ) as file:
            file.write(np.full((1, 64, 64), 7, np.uint8))
    (tmp_path / "disk" / "b" / "image.csv").write_text("label,xmax,ymin,ymax,xmin\nship,9,1,8,2\n")
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    manifest.write(scan(tmp_path / "link", labels="none").table, tmp_path / "m.parquet")
    for place in ("link", "disk"):
        table, _ = box_files.boxes_of(manifest.read(tmp_path / "m.parquet"), [tmp_path / place])
        assert table["uri"].to_pylist() == [str(tmp_path / "link" / "b" / "image.tif")]


def test_annotations_that_fit_nothing(tmp_path: Path, small_manifest: Path) -> None:
    (tmp_path / "a.csv").write_text("image_path,xmin,ymin,xmax,ymax,label\nnowhere.tif,1,2,3,4,x\n")
    with pytest.raises(UserError, match="No box of the manifest's 24 images"):
        box_files.boxes_of(manifest.read(small_manifest), [tmp_path])
    (tmp_path / "a.csv").write_text("image_path,xmin,ymin,xmax,ymax,label\n000.tif,1,2,three,4,x\n")
    with pytest.raises(UserError, match=r"a\.csv holds no boxes"):
        box_files.boxes_of(manifest.read(small_manifest), [tmp_path])
    (tmp_path / "a.csv").unlink()
    (tmp_path / "000.txt").write_text("1 2 3 2 3 4 1 4 ship 0\n1 2 3 2 3 4 ship 0\n")
    with pytest.raises(UserError, match=r"000\.txt holds no boxes.*(line of 8 words|'ship')"):
        box_files.boxes_of(manifest.read(small_manifest), [tmp_path])
    with pytest.raises(UserError, match="There is no"):
        box_files.boxes_of(manifest.read(small_manifest), [tmp_path / "nothing"])
