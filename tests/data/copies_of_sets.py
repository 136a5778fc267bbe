"""Small copies of public data sets, each in its makers' layout: written file by file, read by ``test_catalog``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
from PIL import Image
from pyproj import Transformer
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


@writer("aid")
def aid(root: Path) -> dict[str, Any]:
    for name in ("Airport", "Viaduct"):
        for i in range(1, 11):
            picture(root / "AID" / name / f"{name.lower()}_{i}.jpg", seed=i)
    return {"splits": {"train": 10, "test": 10}, "bands": 3, "classes": {"Airport", "Viaduct"}}


@writer("resisc45")
def resisc45(root: Path) -> dict[str, Any]:
    for name in ("airplane", "wetland"):
        for i in range(1, 701, 70):
            picture(root / "NWPU-RESISC45" / name / f"{name}_{i:03d}.jpg", seed=i)
    return {"bands": 3, "classes": {"airplane", "wetland"}}


@writer("ucmerced")
def ucmerced(root: Path) -> dict[str, Any]:
    top = root / "UCMerced_LandUse" / "Images"
    for name in ("agricultural", "beach", "tenniscourt"):
        for i in range(0, 100, 10):
            tiff(top / name / f"{name}{i:02d}.tif", draw(3, 32, 32, seed=i, top=255).astype(np.uint8), crs=None)
    return {"bands": 3, "classes": {"agricultural", "beach", "tenniscourt"}}


@writer("mlrsnet")
def mlrsnet(root: Path) -> dict[str, Any]:
    labels = ["airplane", "bare soil", "buildings", "runway"]
    for category, rows in {"airplane": ["1,1,0,1", "1,0,0,1"], "park": ["0,0,1,0"]}.items():
        lines = [f"{category}_{i:05d}.jpg,{row}" for i, row in enumerate(rows, 1)]
        text(root / "Labels" / f"{category}.csv", [",".join(["image", *labels]), *lines])
        for line in lines:
            picture(root / "Images" / category / line.partition(",")[0])
    return {"splits": {None: 3}, "bands": 3, "classes": set(labels)}


@writer("millionaid")
def millionaid(root: Path) -> dict[str, Any]:
    picture(root / "train/agriculture_land/grassland/meadow/P0115918.jpg")
    picture(root / "train/commercial_land/commercial_area/P0000008.jpg", seed=1)
    picture(root / "test/test/P0000001.jpg", seed=2)
    return {"splits": {None: 3}, "bands": 3, "classes": {"meadow", "commercial_area"}}


def mask(path: Path, values: Sequence[int], side: int = 32, dtype: Any = np.uint8) -> None:
    """Write bands of rows, one of each value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.repeat(np.asarray(values), -(-side // len(values)))[:side]
    pixels = np.repeat(rows[:, None], side, 1).astype(dtype)
    if path.suffix == ".png":
        Image.fromarray(pixels).save(path)
    else:
        tiff(path, pixels[None])


@writer("loveda")
def loveda(root: Path) -> dict[str, Any]:
    for part in ("Train", "Val", "Test"):
        for scene in ("Rural", "Urban"):
            for i in range(2):
                picture(root / part / scene / "images_png" / f"{i}.png", seed=i)
                if part != "Test":
                    mask(root / part / scene / "masks_png" / f"{i}.png", range(8))
    return {"splits": {"train": 4, "test": 4, None: 4}, "bands": 3, "numbers": {0, 1, 2, 3, 4, 5, 6, 255}}


@writer("flair")
def flair(root: Path) -> dict[str, Any]:
    for top, masks, domains in (
        ("flair_aerial_train", "flair_labels_train", ("D032_2019", "D004_2021")),
        ("flair_1_aerial_test", "flair_1_labels_test", ("D026_2020",)),
    ):
        for domain in domains:
            for i in (1, 2):
                pixels = draw(5, 64, 64, seed=i, top=255).astype(np.uint8)
                tiff(root / top / domain / "Z1_NN" / "img" / f"IMG_{i:06d}.tif", pixels, "EPSG:2154", gsd_m=0.2)
                mask(root / masks / domain / "Z1_NN" / "msk" / f"MSK_{i:06d}.tif", range(1, 20), 64)
    return {"splits": {"train": 2, "val": 2, "test": 2}, "bands": 5, "numbers": set(range(13))}


@writer("spacenet1")
def spacenet1(root: Path) -> dict[str, Any]:
    top = root / "SN1_buildings" / "train"
    for i in range(1, 8):
        path = top / "3band" / f"3band_AOI_1_RIO_img{i}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = draw(3, 40, 44, seed=i, top=255).astype(np.uint8)
        place = {"crs": "EPSG:4326", "transform": from_origin(-43.6, -22.9, 1e-5, 1e-5)}
        with rasterio.open(path, "w", driver="GTiff", count=3, height=40, width=44, dtype="uint8", **place) as file:
            file.write(pixels)
        ring = [[-43.6 + 1e-5 * x, -22.9 - 1e-5 * y, 0.0] for x, y in ((10, 5), (30, 5), (30, 25), (10, 25), (10, 5))]
        shape = {"type": "Polygon", "coordinates": [ring]}
        features = [{"type": "Feature", "properties": {}, "geometry": shape}] if i > 1 else []
        text(
            top / "geojson" / f"Geo_AOI_1_RIO_img{i}.geojson",
            [json.dumps({"type": "FeatureCollection", "features": features})],
        )
    return {"splits": {"train": 5, "test": 2}, "bands": 3, "numbers": {0, 1}, "placed": (-43.5998, -22.9002)}


@writer("fmow")
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


@writer("ssl4eo-s12")
def ssl4eo_s12(root: Path) -> dict[str, Any]:
    for place in ("0000000", "0000001"):
        for date in ("20200323T141741_20200323T142421_T20MQV", "20200626T141741_20200626T141742_T20MQV"):
            for band in ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12"):
                side = 264 if band in ("B2", "B3", "B4", "B8") else 44 if band in ("B1", "B9", "B10") else 132
                pixels = draw(1, side, side, seed=len(band)).astype(np.uint16)
                tiff(root / "s2c" / place / date / f"{band}.tif", pixels, gsd_m=2640 / side)
    return {"splits": {None: 4}, "bands": 13}


@writer("woody")
def woody(root: Path) -> dict[str, Any]:
    for species, number in (("acacia", 1), ("pinus", 2), ("ulex", 3)):
        for flight in (f"{species}_f{number}", f"{species}_f9"):
            flight = {"pinus_f2": "pinus_f2", "ulex_f3": "ulex_f4"}.get(flight, flight)
            for tile in ("tile_0_0.tif", "tile_0_224.tif"):
                tiff(root / species / flight / "tiles_224" / tile, draw(3, 32, 32, top=255).astype(np.uint8))
                mask(root / species / flight / "masks_224" / tile, (0, number))
    return {"splits": {"train": 6, "test": 6}, "bands": 3, "numbers": {0, 1, 2, 3}}


@writer("cashew-plant")
def cashew_plant(root: Path) -> dict[str, Any]:
    for date in ("00_20191105", "00_20191110"):
        for band in ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12", "CLD"):
            pixels = draw(1, 1186, 1122, seed=int(date[-2:])).astype(np.uint16)
            tiff(root / "imagery" / "00" / date / f"{date}_{band}_10m.tif", pixels, "EPSG:32631")
    to_degrees = Transformer.from_crs("EPSG:32631", "EPSG:4326", always_xy=True)
    features = []
    for number in range(1, 7):
        left, top = 5e5 + 1500.0 * number, 5_400_000.0 - 500.0
        ring = [
            to_degrees.transform(left + x, top - y) for x, y in ((0, 0), (1500, 0), (1500, 9000), (0, 9000), (0, 0))
        ]
        shape = {"type": "Polygon", "coordinates": [[list(corner) for corner in ring]]}
        features.append({"type": "Feature", "properties": {"class": number}, "geometry": shape})
    text(root / "labels" / "00.geojson", [json.dumps({"type": "FeatureCollection", "features": features})])
    return {"splits": {"train": 30, "val": 10, "test": 10}, "bands": 12, "numbers": {0, 1, 2, 3, 4, 5, 255}}


@writer("so2sat")
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


@writer("sen4agrinet")
def sen4agrinet(root: Path) -> dict[str, Any]:
    for tile in ("31TBF", "31TCG", "31TDF"):
        for i in range(4):
            path = root / "data" / "2019" / tile / f"2019_{tile}_patch_{i:02d}_14.nc"
            path.parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(path, "w") as file:
                for band in ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"):
                    side = 366 if band in ("B02", "B03", "B04", "B08") else 61 if band in ("B01", "B09", "B10") else 183
                    group = file.create_group(band)
                    group[band] = np.broadcast_to(np.arange(1, 4)[:, None, None], (3, side, side)) * 100 + draw(
                        3, side, side, top=50
                    )
                    group["time"] = np.array([30, 180, 300])
                    group["time"].attrs["units"] = "days since 2019-01-01 00:00:00"
                    step = 3660 / side
                    group["x"] = 3e5 + 3660 * i + step * (np.arange(side) + 0.5)
                    group["y"] = 4_600_000 - step * (np.arange(side) + 0.5)
                rows = np.repeat([0, 110, 770, 999], 92)[:366]
                file["labels/labels"] = np.repeat(rows[:, None], 366, 1).astype(np.int32)
                file["parcels/parcels"] = np.zeros((366, 366), np.int32)
    return {"bands": 13, "numbers": {0, 10, 255}, "splits_of": {"train", "val", "test"}}
