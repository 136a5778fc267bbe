"""Windows of FLAIR's aerial images, the commonest class of each, and a split by blocks: a manifest for studies.

Run: python benchmarks/flair_windows.py ../shared/data/flair2_samples -o flair.parquet

A quarter of every image, in turn another corner, is for testing and the rest for training; a window that would reach
over the line is left out, and so is one of a class that no training window has. Windows overlap their neighbours by
half, and have their true footprints (by the images' CRS; some masks lack theirs, and their grid is the same).
The images are one compressed block each, of which a crop would decode everything, more than a small model's step costs;
so copies in tiles are written beside the manifest, and windows are of these.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
import shapely
from pyproj import Transformer

from terrasieve import manifest

SIDE_PX, STEP_PX = 64, 32


def tiled(path: Path, folder: Path) -> Path:
    """Copy an image, pixels and place unchanged, into tiles of a window's side."""
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / f"{path.parent.name}.tif"
    layout = {"TILED": "YES", "BLOCKXSIZE": SIDE_PX, "BLOCKYSIZE": SIDE_PX, "COMPRESS": "ZSTD"}
    rasterio.shutil.copy(path, copy, driver="GTiff", **layout)
    return copy


def windows(path: Path, copy: Path, number: int) -> list[dict[str, Any]]:
    """Return the rows of one image, the ``number``-th, whose tiled copy is ``copy``."""
    with rasterio.open(path) as image, rasterio.open(path.with_name("mask.tif")) as file:
        mask, transform, crs, side_px = file.read(1), image.transform, image.crs, image.width
        shared = {
            "uri": str(copy.resolve()), "width": SIDE_PX, "height": SIDE_PX, "dtype": image.dtypes[0],
            "bands": ["red", "green", "blue", "nir", "elevation"], "gsd_m": abs(transform.a), "crs": crs.to_string(),
            "source": "FLAIR#2", "licence": "etalab-2.0", "keep": True, "reason": "",
        }  # fmt: skip
    to_degrees = Transformer.from_crs(crs, 4326, always_xy=True)
    corner_x, corner_y = (part * side_px // 2 for part in divmod(number % 4, 2))
    rows = []
    for y in range(0, side_px - SIDE_PX + 1, STEP_PX):
        for x in range(0, side_px - SIDE_PX + 1, STEP_PX):
            shared_px = [
                max(min(at + SIDE_PX, corner + side_px // 2) - max(at, corner), 0)
                for at, corner in ((x, corner_x), (y, corner_y))
            ]
            if 0 < shared_px[0] * shared_px[1] < SIDE_PX**2:
                continue
            metres = [
                transform * (x + dx, y + dy) for dx, dy in ((0, 0), (SIDE_PX, 0), (SIDE_PX, SIDE_PX), (0, SIDE_PX))
            ]
            outline = shapely.Polygon([to_degrees.transform(*corner_m) for corner_m in metres])
            window = (x, y, SIDE_PX, SIDE_PX)
            rows.append({
                **shared, "id": manifest.row_id(shared["uri"], window), "window": list(window),
                "geometry": outline.wkb, "lon": outline.centroid.x, "lat": outline.centroid.y,
                "split": "test" if shared_px[0] * shared_px[1] else "train",
                "label": f"class {np.bincount(mask[y : y + SIDE_PX, x : x + SIDE_PX].ravel()).argmax()}",
            })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    tiles = args.output.with_name(f"{args.output.stem}_tiles")
    paths = sorted(args.folder.glob("*/aerial.tif"))
    rows = [row for number, path in enumerate(paths) for row in windows(path, tiled(path, tiles), number)]
    known = {row["label"] for row in rows if row["split"] == "train"}
    kept = [row for row in rows if row["label"] in known]
    manifest.write(manifest.rows_to_table(kept), args.output)
    print(f"{len(kept)} windows in {args.output}; {len(rows) - len(kept)} left out: no training window has their class")
    for split in ("train", "test"):
        print(f"{split}: {dict(Counter(row['label'] for row in kept if row['split'] == split).most_common())}")


if __name__ == "__main__":
    main()
