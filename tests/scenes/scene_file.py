"""A small scene as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import from_origin

NAMES = ("red", "nir")


def write_scene(path: Path, height: int, width: int, **how: Any) -> Path:
    """Write two bands of a smooth surface with noise."""
    draw = np.random.Generator(np.random.Philox(3))
    surface = 100 + 60 * np.sin(np.add.outer(np.arange(height) / 9, np.arange(width) / 7))
    pixels = np.stack([surface, surface.T[:height, :width] if height == width else surface[:, ::-1]])
    pixels = np.clip(pixels + draw.normal(0, 15, pixels.shape), 1, 255).astype(np.uint8)
    place = {"crs": "EPSG:32721", "transform": from_origin(500000, 6100000, 10, 10)}
    shape = {"count": 2, "height": height, "width": width, "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", **shape, **(place | how)) as file:
        file.write(pixels)
        file.descriptions = NAMES
    return path
