"""Annotation files: every form is read, found beside its images, and what fits nothing is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from pyproj import Transformer

from terrasieve import manifest
from terrasieve.boxes.overlap import iou_of_pairs
from terrasieve.curate import box_files
from terrasieve.curate.scan import scan
from terrasieve.data.boxes import BoxSettings, find_boxes
from terrasieve.errors import UserError

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
    boxes, notes = find_boxes(manifest.read(tmp_path / "m.parquet"), tmp_path / "m.parquet", BoxSettings())
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
