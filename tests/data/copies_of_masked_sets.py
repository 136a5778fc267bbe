"""Small copies of public data sets with masks or outlines, each in its makers' layout: see ``copies_of_sets``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import rasterio
from files_of_sets import draw, mask, picture, text, tiff
from pyproj import Transformer
from rasterio.transform import from_origin


def loveda(root: Path) -> dict[str, Any]:
    for part in ("Train", "Val", "Test"):
        for scene in ("Rural", "Urban"):
            for i in range(2):
                picture(root / part / scene / "images_png" / f"{i}.png", seed=i)
                if part != "Test":
                    mask(root / part / scene / "masks_png" / f"{i}.png", range(8))
    return {"splits": {"train": 4, "test": 4, None: 4}, "bands": 3, "numbers": {0, 1, 2, 3, 4, 5, 6, 255}}


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


def woody(root: Path) -> dict[str, Any]:
    for species, number in (("acacia", 1), ("pinus", 2), ("ulex", 3)):
        for flight in (f"{species}_f{number}", f"{species}_f9"):
            flight = {"pinus_f2": "pinus_f2", "ulex_f3": "ulex_f4"}.get(flight, flight)
            for tile in ("tile_0_0.tif", "tile_0_224.tif"):
                tiff(root / species / flight / "tiles_224" / tile, draw(3, 32, 32, top=255).astype(np.uint8))
                mask(root / species / flight / "masks_224" / tile, (0, number))
    return {"splits": {"train": 6, "test": 6}, "bands": 3, "numbers": {0, 1, 2, 3}}


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


MASKED_WRITERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "loveda": loveda,
    "flair": flair,
    "spacenet1": spacenet1,
    "woody": woody,
    "cashew-plant": cashew_plant,
    "sen4agrinet": sen4agrinet,
}
