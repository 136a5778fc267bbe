"""What several tests need: the shared imagery, small imagery written by the test itself, tiny recipes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from terrasieve import manifest, recipe
from terrasieve.curate.scan import scan
from terrasieve.recipe import AdaptRecipe, Recipe

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch starts its threads
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or every subprocess compiles torch anew
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; Ctrl-C is tested, too
    signal.signal(signal.SIGINT, signal.default_int_handler)
SHARED = Path(os.environ.get("TERRASIEVE_SHARED", Path(__file__).resolve().parents[1] / ".." / "shared")).resolve()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real imagery beside the checkout."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"real imagery is not beside the checkout ({SHARED / 'data'}); set TERRASIEVE_SHARED")
    return SHARED / "data"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Two worker processes and a test share two cores; one thread each keeps small models fast."""
    torch.set_num_threads(1)


def write_images(folder: Path, count: int = 24, size: int = 40, seed: int = 0) -> Path:
    """Write ``count`` georeferenced uint16 GeoTIFFs of 4 bands in two class folders."""
    import rasterio
    from rasterio.transform import from_origin

    draw = np.random.Generator(np.random.Philox(seed))
    for index in range(count):
        path = folder / ("smooth", "rough")[index % 2] / f"{index:03d}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = draw.integers(200, 4000, (4, size // 8, size // 8)).repeat(8, 1).repeat(8, 2)
        fine = draw.integers(0, 1500 if index % 2 else 50, (4, size, size))
        where = {"crs": "EPSG:32721", "transform": from_origin(300000 + index * size * 10, 6100000, 10, 10)}
        shape = {"width": size, "height": size, "count": 4, "dtype": "uint16"}
        with rasterio.open(path, "w", driver="GTiff", **shape, **where) as file:
            file.write((coarse + fine).astype(np.uint16))
            for band, name in enumerate(("blue", "green", "red", "nir"), 1):
                file.set_band_description(band, name)
    return folder


@pytest.fixture(scope="session")
def small_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 24 small real GeoTIFFs."""
    root = tmp_path_factory.mktemp("imagery")
    path = root / "manifest.parquet"
    manifest.write(scan(write_images(root / "images")).table, path)
    return path


@pytest.fixture
def tiny(small_manifest: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """Make a recipe that trains in a second; keyword arguments replace top-level keys."""

    def make(**changes: Any) -> Recipe:
        content: dict[str, Any] = {
            "data": str(small_manifest),
            "output": str(tmp_path / "runs"),
            "steps": 6,
            "batch_size": 4,
            "precision": "fp32",
            "image": {"size_px": 32},
            "encoder": {"name": "vit_tiny_patch16_224", "patch_px": 8},
            "method": {"name": "selective_mae", "decoder": {"depth": 2, "width": 32, "heads": 4}},
            "loader": {"workers": 0},
            "log": {"every": 2, "picture_every": 0, "checkpoint_every": 100},
        }
        return recipe.check(content | changes, "test")

    return make


@pytest.fixture
def tune(small_manifest: Path, tmp_path: Path) -> Callable[..., AdaptRecipe]:
    """Make a fine-tuning recipe that trains in a second; keyword arguments replace top-level keys."""

    def make(**changes: Any) -> AdaptRecipe:
        content: dict[str, Any] = {
            "task": {"data": str(small_manifest)},
            "output": str(tmp_path / "runs"),
            "steps": 12,
            "batch_size": 8,
            "precision": "fp32",
            "image": {"size_px": 32},
            "encoder": {"name": "vit_tiny_patch16_224", "patch_px": 8, "depth": 2},
            "method": {"name": "rvit", "drop": {"policy": "static", "ratio": 0.5}},
            "optim": {"base_lr": 3e-3, "warmup": 0.0},
            "validate_every": 4,
            "loader": {"workers": 0},
            "log": {"every": 5, "picture_every": 0, "checkpoint_every": 100},
        }
        return recipe.check(content | changes, "test", AdaptRecipe)

    return make


@pytest.fixture(scope="session")
def masked_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 16 georeferenced images with masks: dark ground, bright squares."""
    import rasterio

    root = tmp_path_factory.mktemp("dense")
    draw = np.random.Generator(np.random.Philox(7))
    where = {"crs": "EPSG:32721", "transform": rasterio.transform.from_origin(300000, 6100000, 10, 10)}
    for index in range(16):
        mask = draw.integers(0, 2, (1, 5, 5)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
        image = (mask.astype(int) * 2000 + draw.integers(0, 200, (3, 40, 40))).astype(np.uint16)
        for name, array in (("images", image), ("masks", mask)):
            path = root / name / f"{index:02d}.tif"
            path.parent.mkdir(exist_ok=True)
            shape = {"width": 40, "height": 40, "count": len(array), "dtype": array.dtype}
            with rasterio.open(path, "w", driver="GTiff", **shape, **where) as file:
                file.write(array)
    manifest.write(scan(root / "images", labels="none").table, root / "manifest.parquet")
    return root / "manifest.parquet"


@pytest.fixture
def dense(tune: Callable[..., AdaptRecipe], masked_manifest: Path) -> Callable[..., AdaptRecipe]:
    """Make a segmentation recipe."""
    masks = {"replace": ["images/", "masks/"], "classes": ["ground", "square"]}
    task = {"data": str(masked_manifest), "masks": masks}
    method = {"name": "rupernet", "width": 32, "drop": {"policy": "static", "ratio": 0.25}}
    return lambda **changes: tune(**{"task": task, "method": method} | changes)
