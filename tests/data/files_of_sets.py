"""Files of drawn pixels, masks of rows, and lists: what small copies of public data sets are made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from PIL import Image
from rasterio.transform import from_origin


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


def mask(path: Path, values: Sequence[int], side: int = 32, dtype: Any = np.uint8) -> None:
    """Write bands of rows, one of each value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.repeat(np.asarray(values), -(-side // len(values)))[:side]
    pixels = np.repeat(rows[:, None], side, 1).astype(dtype)
    if path.suffix == ".png":
        Image.fromarray(pixels).save(path)
    else:
        tiff(path, pixels[None])
