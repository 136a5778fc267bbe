"""Small copies of public data sets, each in its makers' layout, written file by file, for the tests of the catalog."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from copies_of_masked_sets import MASKED_WRITERS
from files_of_sets import draw, picture, text, tiff

Copies = dict[str, tuple[Path, dict[str, Any]]]  # name -> where the copy is, what is in it


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


def dior(root: Path) -> dict[str, Any]:
    frame = "<bndbox><xmin>11</xmin><ymin>21</ymin><xmax>30</xmax><ymax>60</ymax></bndbox>"
    return _dior(root, "Horizontal Bounding Boxes", [frame, frame])


def dior_r(root: Path) -> dict[str, Any]:
    def frame(*corners: tuple[int, int]) -> str:
        names = ("left_top", "right_top", "right_bottom", "left_bottom")
        inside = "".join(f"<x_{n}>{x}</x_{n}><y_{n}>{y}</y_{n}>" for n, (x, y) in zip(names, corners, strict=True))
        return f"<type>robndbox</type><robndbox>{inside}</robndbox><angle>0</angle>"

    frames = [frame((10, 20), (40, 20), (40, 30), (10, 30)), frame((40, 10), (70, 40), (60, 50), (30, 20))]
    return _dior(root, "Oriented Bounding Boxes", frames)


def aid(root: Path) -> dict[str, Any]:
    for name in ("Airport", "Viaduct"):
        for i in range(1, 11):
            picture(root / "AID" / name / f"{name.lower()}_{i}.jpg", seed=i)
    return {"splits": {"train": 10, "test": 10}, "bands": 3, "classes": {"Airport", "Viaduct"}}


def resisc45(root: Path) -> dict[str, Any]:
    for name in ("airplane", "wetland"):
        for i in range(1, 701, 70):
            picture(root / "NWPU-RESISC45" / name / f"{name}_{i:03d}.jpg", seed=i)
    return {"bands": 3, "classes": {"airplane", "wetland"}}


def ucmerced(root: Path) -> dict[str, Any]:
    top = root / "UCMerced_LandUse" / "Images"
    for name in ("agricultural", "beach", "tenniscourt"):
        for i in range(0, 100, 10):
            tiff(top / name / f"{name}{i:02d}.tif", draw(3, 32, 32, seed=i, top=255).astype(np.uint8), crs=None)
    return {"bands": 3, "classes": {"agricultural", "beach", "tenniscourt"}}


def mlrsnet(root: Path) -> dict[str, Any]:
    labels = ["airplane", "bare soil", "buildings", "runway"]
    for category, rows in {"airplane": ["1,1,0,1", "1,0,0,1"], "park": ["0,0,1,0"]}.items():
        lines = [f"{category}_{i:05d}.jpg,{row}" for i, row in enumerate(rows, 1)]
        text(root / "Labels" / f"{category}.csv", [",".join(["image", *labels]), *lines])
        for line in lines:
            picture(root / "Images" / category / line.partition(",")[0])
    return {"splits": {None: 3}, "bands": 3, "classes": set(labels)}


def millionaid(root: Path) -> dict[str, Any]:
    picture(root / "train/agriculture_land/grassland/meadow/P0115918.jpg")
    picture(root / "train/commercial_land/commercial_area/P0000008.jpg", seed=1)
    picture(root / "test/test/P0000001.jpg", seed=2)
    return {"splits": {None: 3}, "bands": 3, "classes": {"meadow", "commercial_area"}}


def fmow(root: Path) -> dict[str, Any]:
    for part in ("train", "val"):
        for name in ("airport", "zoo"):
            stem = root / part / name / f"{name}_0" / f"{name}_0_0_rgb"
            picture(stem.with_suffix(".jpg"))
            picture(stem.with_name(f"{name}_0_0_msrgb.jpg"))
            ring = "POLYGON ((10.0 50.0, 10.02 50.0, 10.02 50.01, 10.0 50.01, 10.0 50.0))"
            box = {"ID": 0, "box": [4, 4, 20, 20], "category": name, "raw_location": ring}
            about = {"gsd": 0.52, "timestamp": "2016-02-08T10:15:05Z", "raw_location": ring, "bounding_boxes": [box]}
            text(stem.with_suffix(".json"), [json.dumps(about)])
    return {"splits": {"train": 2, "test": 2}, "bands": 3, "classes": {"airport", "zoo"}, "placed": (10.01, 50.005)}


def ssl4eo_s12(root: Path) -> dict[str, Any]:
    for place in ("0000000", "0000001"):
        for date in ("20200323T141741_20200323T142421_T20MQV", "20200626T141741_20200626T141742_T20MQV"):
            for band in ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12"):
                side = 264 if band in ("B2", "B3", "B4", "B8") else 44 if band in ("B1", "B9", "B10") else 132
                pixels = draw(1, side, side, seed=len(band)).astype(np.uint16)
                tiff(root / "s2c" / place / date / f"{band}.tif", pixels, gsd_m=2640 / side)
    return {"splits": {None: 4}, "bands": 13}


def so2sat(root: Path) -> dict[str, Any]:
    for folder in ("random", "block", "culture_10"):
        for part, count in (("training", 6), ("testing", 4)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            with h5py.File(root / folder / f"{part}.h5", "w") as file:
                file["sen1"] = draw(count, 32, 32, 8) / 4000
                file["sen2"] = draw(count, 32, 32, 10, seed=count) / 4000
                file["label"] = np.eye(17)[np.arange(count) % 3]
    return {
        "splits": {"train": 6, "test": 4},
        "bands": 10,
        "classes": {"Compact high rise", "Compact mid rise", "Compact low rise"},
    }


WRITERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "eurosat": eurosat,
    "bigearthnet-v2": bigearthnet_v2,
    "dior": dior,
    "dior-r": dior_r,
    "aid": aid,
    "resisc45": resisc45,
    "ucmerced": ucmerced,
    "mlrsnet": mlrsnet,
    "millionaid": millionaid,
    "fmow": fmow,
    "ssl4eo-s12": ssl4eo_s12,
    "so2sat": so2sat,
    **MASKED_WRITERS,
}
