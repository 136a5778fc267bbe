"""Small scenes from flat to rough in class folders, and their manifest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from terrasieve import manifest
from terrasieve.curate.scan import scan


def write_scenes(folder: Path, count: int, side: int = 32) -> Path:
    """Write ``count`` PNGs from flat to rough, in three class folders, and index them."""
    draw = np.random.Generator(np.random.Philox(3))
    for n in range(count):
        path = folder / "images" / ("sea", "field", "town")[n % 3] / f"{n:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = draw.normal(0, 2 + 60 * (n % 3), (side, side, 3))
        Image.fromarray((128 + 40 * draw.normal(size=3) + noise).clip(0, 255).astype(np.uint8)).save(path)
    manifest.write(scan(folder / "images", workers=1).table, folder / "manifest.parquet")
    return folder / "manifest.parquet"
