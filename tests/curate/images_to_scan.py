"""Small images to scan, and the rows that a scan makes of them."""

from pathlib import Path

import numpy as np
import rasterio
from PIL import Image
from rasterio.transform import from_origin


def save(path: Path, size: int = 16, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(1, 255, (size, size, 3), np.uint8)
    if path.suffix == ".tif":
        profile = {"crs": "EPSG:32721", "transform": from_origin(300_000, 6_200_000, 10, 10)}
        with rasterio.open(path, "w", "GTiff", size, size, 3, dtype="uint8", **profile) as file:
            file.write(values.transpose(2, 0, 1))
    else:
        Image.fromarray(values).save(path)
    return path


def rows(result) -> dict[str, dict]:
    return {Path(row["uri"]).name: row for row in result.table.to_pylist()}
