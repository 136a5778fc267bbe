"""Small copies of public data sets, each in its makers' layout: written file by file, read by ``test_catalog``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
from PIL import Image
from rasterio.transform import from_origin

WRITERS: dict[str, Callable[[Path], dict[str, Any]]] = {}


def writer(name: str) -> Callable[[Callable[[Path], dict[str, Any]]], Callable[[Path], dict[str, Any]]]:
    def keep(function: Callable[[Path], dict[str, Any]]) -> Callable[[Path], dict[str, Any]]:
        WRITERS[name] = function
        return function

    return keep


def draw(*shape: int, seed: int = 0, top: int = 4000) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).integers(1, top, shape)


def tiff(
    path: Path, pixels: np.ndarray, crs: str | None = "EPSG:32633", left: float = 5e5, gsd_m: float = 10.0
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {} if crs is None else {"crs": crs, "transform": from_origin(left, 5_400_000.0, gsd_m, gsd_m)}
    shape = {"count": len(pixels), "height": pixels.shape[1], "width": pixels.shape[2], "dtype": pixels.dtype.name}
    with rasterio.open(path, "w", driver="GTiff", **shape, **place) as file:
        file.write(pixels)


def picture(path: Path, side: int = 32, seed: int = 0, grey: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = draw(side, side, *(() if grey else (3,)), seed=seed, top=255).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def text(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


@writer("eurosat")
def eurosat(root: Path) -> dict[str, Any]:
    top = root / "ds/images/remote_sensing/otherDatasets/sentinel_2/tif"
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for number, name in enumerate(("AnnualCrop", "Forest", "SeaLake")):
        for i in range(1, 7):
            tiff(top / name / f"{name}_{i}.tif", draw(13, 64, 64, seed=10 * number + i).astype(np.uint16))
            lists["train" if i < 4 else "val" if i < 5 else "test"].append(f"{name}_{i}.jpg")
    for part, names in lists.items():
        text(root / f"eurosat-{part}.txt", names)
    return {"splits": {"train": 9, "val": 3, "test": 6}, "classes": {"AnnualCrop", "Forest", "SeaLake"}, "bands": 13}


@writer("bigearthnet-v2")
def bigearthnet_v2(root: Path) -> dict[str, Any]:
    rows = []
    for i, split in enumerate(("train", "train", "train", "validation", "test", "test")):
        tile = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"
        patch, radar = f"{tile}_{26 + i}_57", f"S1A_IW_GRDH_1SDV_20170613T165043_33UUP_{26 + i}_57"
        for band, side in {"B01": 20, "B02": 120, "B03": 120, "B04": 120, "B05": 60, "B06": 60, "B07": 60, "B08": 120,
                           "B8A": 60, "B09": 20, "B11": 60, "B12": 60}.items():  # fmt: skip
            pixels = draw(1, side, side, seed=i, top=9000).astype(np.uint16)
            tiff(
                root / "BigEarthNet-S2" / tile / patch / f"{patch}_{band}.tif",
                pixels,
                left=3e5 + 1200 * i,
                gsd_m=1200 / side,
            )
        for band in ("VH", "VV"):
            pixels = (draw(1, 120, 120, seed=i) / -200).astype(np.float32)
            tiff(root / "BigEarthNet-S1" / "S1A_IW_GRDH_1SDV_20170613T165043" / radar / f"{radar}_{band}.tif", pixels)
        labels = ["Arable land", "Pastures"] if i % 2 else ["Inland waters", "Mixed forest", "Pastures"]
        rows.append({"patch_id": patch, "labels": labels, "split": split, "country": "Austria", "s1_name": radar})
    root.mkdir(exist_ok=True, parents=True)
    pq.write_table(pa.Table.from_pylist(rows), root / "metadata.parquet")
    classes = {"Arable land", "Pastures", "Inland waters", "Mixed forest"}
    return {"splits": {"train": 3, "val": 1, "test": 2}, "classes": classes, "bands": 12}


def _voc(frame: str, name: str) -> str:
    return f"<object><name>{name}</name><difficult>0</difficult>{frame}</object>"


def _dior(root: Path, folder: str, frames: Sequence[str]) -> dict[str, Any]:
    parts = {"train": ["00001", "00002"], "val": ["00003"], "test": ["11726", "11727"]}
    for split, names in parts.items():
        text(root / "ImageSets" / "Main" / f"{split}.txt", names)
        for name in names:
            picture(root / f"JPEGImages-{'test' if split == 'test' else 'trainval'}" / f"{name}.jpg", 80)
            objects = "".join(
                _voc(frame, label) for frame, label in zip(frames, ("ship", "Expressway-Service-area"), strict=True)
            )
            text(root / "Annotations" / folder / f"{name}.xml", [f"<annotation>{objects}</annotation>"])
    return {
        "splits": {"train": 2, "val": 1, "test": 2},
        "bands": 3,
        "boxes": 10,
        "classes": {"ship", "expressway-service-area"},
    }


@writer("dior")
def dior(root: Path) -> dict[str, Any]:
    frame = "<bndbox><xmin>11</xmin><ymin>21</ymin><xmax>30</xmax><ymax>60</ymax></bndbox>"
    return _dior(root, "Horizontal Bounding Boxes", [frame, frame])


@writer("dior-r")
def dior_r(root: Path) -> dict[str, Any]:
    def frame(*corners: tuple[int, int]) -> str:
        names = ("left_top", "right_top", "right_bottom", "left_bottom")
        inside = "".join(f"<x_{n}>{x}</x_{n}><y_{n}>{y}</y_{n}>" for n, (x, y) in zip(names, corners, strict=True))
        return f"<type>robndbox</type><robndbox>{inside}</robndbox><angle>0</angle>"

    frames = [frame((10, 20), (40, 20), (40, 30), (10, 30)), frame((40, 10), (70, 40), (60, 50), (30, 20))]
    return _dior(root, "Oriented Bounding Boxes", frames)
