"""Scenes: blended windows without seams, resumable, as COGs and tables that lie where the scene lies."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Tensor
from torch.nn.functional import avg_pool2d

from terrasieve.batch import Batch
from terrasieve.data.augment import ImageSettings
from terrasieve.errors import UserError
from terrasieve.evaluate.patches import feature_map
from terrasieve.nn.encoder import Encoder, EncoderSettings
from terrasieve.scenes.blend import blended, ramp
from terrasieve.scenes.scene import Scene, open_scene
from terrasieve.scenes.store import RowStore
from terrasieve.scenes.windows import starts, tiling

from .scene_file import NAMES, write_scene

PATCH = 4
IMAGE = ImageSettings(size_px=16, mean=(100.0, 90.0), std=(50.0, 60.0))


def patch_mean(batch: Batch, _: torch.Generator) -> Tensor:
    """See no farther than a patch."""
    return avg_pool2d(batch.image, PATCH)


@pytest.fixture(scope="module")
def vit() -> Callable[[Batch, torch.Generator], Tensor]:
    """See all of a window, and where in it a patch stands."""
    how = EncoderSettings(name="vit_tiny_patch16_224", patch_px=PATCH, depth=2)
    encoder = Encoder(how, 2, (16, 16), seed=1).eval()
    return lambda batch, _: feature_map(encoder, batch.image)


def whole(
    scene: Scene, network: Any, side: int = 4, overlap: float = 0.5, first: int = 0, batch: int = 16
) -> np.ndarray:
    plan = tiling(scene, PATCH, (side, side), overlap)
    image = IMAGE.model_copy(update={"size_px": side * PATCH})
    parts = list(blended(scene, network, plan, image, first=first, batch_size=batch))
    found = np.concatenate([part.values for part in parts], 1)
    assert found.shape[1:] == (plan.rows - first, plan.columns)
    return found


@given(some.integers(1, 90), some.integers(1, 16), some.data())
def test_lattice_covers_an_axis(length: int, side: int, data: Any) -> None:
    step = data.draw(some.integers(1, side))
    found = starts(length, side, step)
    assert found == sorted(set(found)) and found[0] == 0
    assert {cell for start in found for cell in range(start, start + side)} >= set(range(length))
    assert len(found) == 1 or found[-1] + side == length
    assert all(after - before == step for before, after in pairwise(found[:-1]))


@given(some.integers(2, 30), some.data())
def test_ramps_of_neighbours_add_to_one(side: int, data: Any) -> None:
    overlap = data.draw(some.integers(0, side // 2))
    weight = ramp(side, overlap)
    assert (weight > 0).all() and (weight[overlap : side - overlap] == 1).all()
    if overlap:
        assert torch.allclose(weight[side - overlap :] + weight[:overlap], torch.ones(overlap))


@settings(max_examples=12, deadline=None)
@given(some.integers(5, 60), some.integers(5, 60), some.integers(1, 6), some.floats(0, 0.9))
def test_a_network_that_sees_a_patch_gives_one_map_whatever_the_windows(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, side: int, overlap: float
) -> None:
    scene = open_scene(write_scene(tmp_path_factory.mktemp("s") / "scene.tif", height, width), NAMES)
    array, _ = scene.strip(0, height)
    padded = np.pad(array, ((0, 0), (0, -height % PATCH), (0, -width % PATCH)), "edge").astype(np.float32)
    normal = (padded - np.array(IMAGE.mean)[:, None, None]) / np.array(IMAGE.std)[:, None, None]
    rows, columns = normal.shape[1] // PATCH, normal.shape[2] // PATCH
    naive = normal.reshape(2, rows, PATCH, columns, PATCH).mean(axis=(2, 4))
    assert np.allclose(whole(scene, patch_mean, side, overlap, batch=3), naive, atol=1e-5)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.7])
def test_blending_equals_a_naive_weighted_mean(tmp_path: Path, vit: Any, overlap: float) -> None:
    scene = open_scene(write_scene(tmp_path / "scene.tif", 44, 36), NAMES)
    plan = tiling(scene, PATCH, (4, 4), overlap)
    array = torch.from_numpy(scene.strip(0, 44)[0].astype(np.float32))
    normal = (array - torch.tensor(IMAGE.mean)[:, None, None]) / torch.tensor(IMAGE.std)[:, None, None]
    total, weights = torch.zeros(192, plan.rows, plan.columns), torch.zeros(plan.rows, plan.columns)
    for top in plan.down:
        for left in plan.across:
            cut = normal[:, top * PATCH : (top + 4) * PATCH, left * PATCH : (left + 4) * PATCH]
            with torch.inference_mode():
                seen = vit(Batch(cut[None], *[torch.zeros(1)] * 4), None)[0]
            for row in range(4):
                for column in range(4):
                    weight = 1.0
                    for place, shared in ((row, plan.overlap[0]), (column, plan.overlap[1])):
                        weight *= min(min(place + 0.5, 3.5 - place) / max(shared, 0.5), 1)
                    total[:, top + row, left + column] += weight * seen[:, row, column]
                    weights[top + row, left + column] += weight
    assert np.allclose(whole(scene, vit, overlap=overlap), (total / weights).numpy(), atol=1e-4)


def test_a_cut_scene_keeps_every_cell_that_lies_a_window_from_the_cut(tmp_path: Path, vit: Any) -> None:
    path = write_scene(tmp_path / "scene.tif", 96, 80)
    full = whole(open_scene(path, NAMES), vit)
    with rasterio.open(path) as file:
        part, place = file.read()[:, 16:72, 8:72], file.profile
    with rasterio.open(tmp_path / "part.tif", "w", **(place | {"height": 56, "width": 64})) as file:
        file.write(part)
        file.descriptions = NAMES
    cut = whole(open_scene(tmp_path / "part.tif", NAMES), vit)
    inside = cut[:, 4:-4, 4:-4]
    assert inside.size and np.allclose(inside, full[:, 8:14, 6:14], atol=1e-5)
    assert not np.allclose(cut[:, 0], full[:, 4, 2:18], atol=1e-3)  # or it would hold of every cell


@pytest.mark.parametrize("first", [1, 3, 5, 10, 12])
def test_going_on_gives_the_same_bits(tmp_path: Path, vit: Any, first: int) -> None:
    scene = open_scene(write_scene(tmp_path / "scene.tif", 50, 44), NAMES)
    for overlap in (0.0, 0.5, 0.75):
        assert np.array_equal(whole(scene, vit, 4, overlap)[:, first:], whole(scene, vit, 4, overlap, first))


def test_cells_without_data_are_told_from_those_with_a_pixel(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "scene.tif", 40, 40, nodata=0)
    with rasterio.open(path, "r+") as file:
        pixels = file.read()
        pixels[:, :17, :12] = 0
        file.write(pixels)
    plan = tiling(scene := open_scene(path, NAMES), PATCH, (4, 4), 0.5)
    parts = list(blended(scene, patch_mean, plan, IMAGE))
    expected = np.ones((10, 10), bool)
    expected[:4, :3] = False
    assert np.array_equal(np.concatenate([part.valid for part in parts]), expected)
    assert np.isfinite(np.concatenate([part.values for part in parts], 1)).all()


def test_rows_survive_a_kill_and_are_thrown_away_with_another_map(tmp_path: Path) -> None:
    rows = np.arange(5 * 3 * 2, dtype=np.float32).reshape(5, 3, 2)
    store = RowStore(tmp_path, (5, 3, 2), "float32", {"of": "a"})
    store.append(rows[:2])
    with store.data.open("ab") as file:  # killed between the rows and their count
        file.write(b"half a row")
    again = RowStore(tmp_path, (5, 3, 2), "float32", {"of": "a"})
    assert again.done == 2
    again.append(rows[2:])
    assert np.array_equal(again.rows(0, 5), rows) and np.array_equal(again.rows(1, 3), rows[1:3])
    assert RowStore(tmp_path, (5, 3, 2), "float32", {"of": "b"}).done == 0


def test_bands_are_found_by_name_or_given(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "scene.tif", 20, 30)
    assert open_scene(path, ("nir", "red")).bands == (1, 0)
    assert open_scene(path, ("blue", "green"), ("red", "nir")).bands == (0, 1)
    with pytest.raises(UserError, match="no band blue; it has red, nir"):
        open_scene(path, ("red", "blue"))
    with pytest.raises(UserError, match="1 bands; the network takes 2"):
        open_scene(path, ("red", "blue"), ("red",))
    with pytest.raises(UserError, match="missing"):
        open_scene(tmp_path / "none.tif", NAMES)
    with pytest.raises(UserError, match="--overlap"):
        tiling(open_scene(path, NAMES), 4, (4, 4), 1.0)
