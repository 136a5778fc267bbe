"""Images and masks for a suite, and a small pretrained encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from terrasieve import manifest, recipe
from terrasieve.curate.scan import scan
from terrasieve.pretrain import pretrain

MASKS = {"replace": ["image.tif", "mask.tif"], "classes": ["ground", "field"]}


def random(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def write_data(root: Path) -> Path:
    """Write class folders of 24 pictures, and 6 samples with masks."""
    for index in range(24):
        path = root / "pictures" / ("dark", "light")[index % 2] / f"{index:02d}.tif"
        write(path, random(index).integers(0, 90, (3, 32, 32)) + 90 * (index % 2))
    lines = ["sample,split,labels"]
    for index in range(6):
        mask = random(index).integers(0, 2, (1, 6, 6)).repeat(8, 1).repeat(8, 2)
        folder = root / "fields" / f"s{index}"
        write(folder / "image.tif", np.concatenate([mask * 150 + 20, mask * 90, mask * 40, mask * 10]))
        write(folder / "mask.tif", mask)
        lines.append(f"s{index},{('train', 'train', 'train', 'validation', 'test', 'test')[index]},field;road")
    (root / "fields" / "locations.csv").write_text("\n".join(lines) + "\n")
    return root


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {"width": pixels.shape[2], "height": pixels.shape[1], "count": len(pixels), "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", **shape) as file:
        file.write(pixels.astype(np.uint8))
        for band, name in enumerate(("red", "green", "blue", "nir")[: len(pixels)], 1):
            file.set_band_description(band, name)


def pretrained(data: Path, root: Path) -> Path:
    """Make a run of two steps."""
    manifest.write(scan(data / "pictures").table, root / "m.parquet")
    content: dict[str, Any] = {
        "data": str(root / "m.parquet"), "steps": 2, "batch_size": 4, "precision": "fp32", "image": {"size_px": 32},
        "encoder": {"name": "vit_tiny_patch16_224", "patch_px": 8, "depth": 2},
        "method": {"name": "mae", "decoder": {"depth": 1, "width": 32, "heads": 4}},
        "loader": {"workers": 0}, "log": {"every": 1, "picture_every": 0, "checkpoint_every": 10},
    }  # fmt: skip
    pretrain(recipe.check(content, "test"), root / "run")
    return root / "run"
