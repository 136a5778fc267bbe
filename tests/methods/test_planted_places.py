"""Coordinates reach the loss with their own image: planted ones, which every image says itself, all the way.

Each image is of one digital number, which tells where it lies; its place has nothing to do with its file's name. A
geometric view of it is the image again, so that even the embedding of each row can be checked.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin
from torch.nn.functional import normalize
from typer.testing import CliRunner

from terrasieve import keyed, manifest
from terrasieve.batch import Batch
from terrasieve.cli import app
from terrasieve.data.images import from_table
from terrasieve.methods.regularisers import Geographic
from terrasieve.pretrain import pretrain
from terrasieve.recipe import Recipe

COUNT, SIZE_PX, DEGREES_PX = 40, 32, 0.001
FIRST, STEP = 1000, 40  # digital numbers


def file(path: Path, numbers: np.ndarray, west: float, north: float) -> None:
    """Write tiles of one digital number each, side by side from west to east."""
    shape = {"width": SIZE_PX * len(numbers), "height": SIZE_PX, "count": 4, "dtype": "uint16"}
    where = {"crs": "EPSG:4326", "transform": from_origin(west, north, DEGREES_PX, DEGREES_PX)}
    with rasterio.open(path, "w", driver="GTiff", **shape, **where) as to:
        to.write(np.broadcast_to(numbers.repeat(SIZE_PX), (4, SIZE_PX, SIZE_PX * len(numbers))).astype(np.uint16))
        for band, name in enumerate(("blue", "green", "red", "nir"), 1):
            to.set_band_description(band, name)


def terrasieve(*words: object) -> None:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A manifest of 28 images and 3 scenes of 4 tiles, and where each number lies, (40, 2) degrees."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "images").mkdir()
    draw = keyed.numpy_generator(0, "planted places")
    lon, lat = -150 + 7.5 * draw.permutation(COUNT), -60 + 3 * draw.permutation(COUNT)
    where = np.stack([lon, lat], axis=1)
    for n in range(COUNT - 12):
        file(folder / "images" / f"{n:02d}.tif", FIRST + STEP * np.array([n]), lon[n], lat[n])
    for n in range(COUNT - 12, COUNT, 4):
        where[n : n + 4] = where[n] + np.arange(4)[:, None] * [SIZE_PX * DEGREES_PX, 0]
        file(folder / "images" / f"scene{n}.tif", FIRST + STEP * np.arange(n, n + 4), *where[n])
    terrasieve("index", folder / "images", "-o", folder / "index.parquet", "--workers", 1)
    return folder / "index.parquet", where + np.array([0.5, -0.5]) * SIZE_PX * DEGREES_PX


def sliced(source: Path, folder: Path) -> Path:
    work = ["--folder", folder / "curated", "--workers", 1]
    terrasieve(
        "slice", source, "-o", folder / "sliced.parquet", *work, f"size_px={SIZE_PX}", f"over_px={SIZE_PX}", "how=grid"
    )
    return folder / "sliced.parquet"


def excluded(source: Path, folder: Path) -> Path:
    work = ["--folder", folder / "curated", "--workers", 1]
    within = ["within=[-140,-55,130,50]", "min_px=8"]
    terrasieve("exclude", sliced(source, folder), "-o", folder / "excluded.parquet", *work, *within)
    return folder / "excluded.parquet"


def subset(source: Path, folder: Path) -> Path:
    options = ["--share", 0.6, "--by", "random", "--balance", "none", "--workers", 1]
    terrasieve("subset", excluded(source, folder), "-o", folder / "subset.parquet", *options)
    return folder / "subset.parquet"


def sharded(source: Path, folder: Path) -> Path:
    terrasieve("shard", excluded(source, folder), "-o", folder / "shards", "--mb", 0.05, "--workers", 1)
    return folder / "shards" / "manifest.parquet"


def damaged(source: Path, folder: Path) -> Path:
    """A manifest in another order whose files have partly vanished, and some of whose rows lost their place."""
    rows = manifest.read(sliced(source, folder)).to_pylist()
    rows = [rows[n] for n in keyed.numpy_generator(0, "another order").permutation(len(rows))]
    for n, row in enumerate(rows):
        row["uri"] = row["uri"] + ".gone" if n % 5 == 0 else row["uri"]
        row |= {"lon": None, "lat": None} if n % 7 == 1 else {}
    manifest.write(manifest.rows_to_table(rows), folder / "damaged.parquet")
    return folder / "damaged.parquet"


@pytest.mark.parametrize("how", [sliced, excluded, subset, sharded, damaged], ids=lambda how: how.__name__)
def test_places_stay_with_their_images(
    how: Callable[[Path, Path], Path],
    planted: tuple[Path, np.ndarray],
    tiny: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the manifest by way of a shuffled loader and the method's views to what the regulariser is given."""
    source, where = planted
    path = how(source, tmp_path)
    seen: list[int] = []
    original = Geographic.regularise

    def checked(around: Geographic, embeddings: torch.Tensor, batch: Batch, draw: torch.Generator) -> Any:
        numbers = batch.image.mean(dim=(1, 2, 3)) * 500 + 2000
        rows = ((numbers - FIRST) / STEP).round().long()
        assert torch.allclose(numbers, FIRST + STEP * rows.float(), atol=0.1), "not an image of ours"
        expected = torch.from_numpy(where[rows])
        found = torch.stack([batch.lon, batch.lat], dim=1)
        known = found.isfinite().all(dim=1)
        assert known.all() or how is damaged
        torch.testing.assert_close(found[known], expected[known], rtol=0, atol=1e-6)
        with torch.no_grad():
            again = normalize(around.method.head(around.encoder.features(batch.image)), dim=1)
        far = torch.cdist(embeddings.detach(), again)
        assert far.diagonal().max() < 1e-3 < (far + 10 * torch.eye(len(far)))[rows[:, None] != rows].min()
        seen.extend(rows[known].tolist())
        return original(around, embeddings, batch, draw)

    def located(around: Geographic, lon_deg_N: np.ndarray, lat_deg_N: np.ndarray) -> None:
        told.extend(zip(lon_deg_N.tolist(), lat_deg_N.tolist(), strict=True))

    told: list[tuple[float, float]] = []
    monkeypatch.setattr(Geographic, "regularise", checked)
    monkeypatch.setattr(Geographic, "locate", located)
    settings = tiny(
        data=str(path), steps=8, batch_size=16, accumulate=2 if how is subset else 1,
        image={"size_px": 32, "mean": [2000.0] * 4, "std": [500.0] * 4},
        encoder={"name": "vit_tiny_patch16_224", "patch_px": 16, "depth": 1},
        method={"name": "moco", "widths": [64, 32], "queue": 16, "views": "geometric"}, geography={"name": "georank"},
        loader={"workers": 2 if how is damaged else 0, "order": "shards" if how is sharded else "uniform", "lanes": 4},
        optim={"base_lr": 1e-6},
    )  # fmt: skip
    kept = sum(manifest.read(path)["keep"].to_pylist())
    pretrain(settings, tmp_path / "run")
    assert len(seen) > 60
    assert len(told) == kept, "what the regulariser clusters beforehand"
    for place in told:
        assert np.isnan(place[0]) or np.abs(where - place).max(axis=1).min() < 1e-6
    assert len(set(seen)) == {sliced: 40, damaged: len(set(seen))}.get(how, kept)
    assert kept == 40 or (how in (excluded, subset, sharded) and 8 < kept < 36)


def test_images_taken_out_keep_their_places(planted: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    """As evaluation takes its splits."""
    source, where = planted
    images = from_table(manifest.read(excluded(source, tmp_path)))
    rows = keyed.numpy_generator(0, "some").permutation(len(images))[:9]
    part = images.take(rows)
    for row in range(9):
        n = (int(part.read(row).array.max()) - FIRST) // STEP
        assert np.allclose([part.lon[row], part.lat[row]], where[n], rtol=0, atol=1e-6)
