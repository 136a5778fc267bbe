"""Pictures of features: components against scikit-learn's, clusters against planted ones, each cell in its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA

from terrasieve.scenes.preview import GAP_PX, LONGEST_PX, by_clusters, by_components, write_preview
from terrasieve.scenes.scene import Scene, open_scene
from terrasieve.scenes.store import RowStore

from .scene_file import NAMES, write_scene

ROWS, COLUMNS, WIDTH, CELL_PX = 10, 15, 12, 4


def stored(folder: Path, values: np.ndarray) -> tuple[RowStore, Scene]:
    """Features of a scene of 60 x 39 px, whose last row of cells reaches beyond it."""
    store = RowStore(folder, (ROWS, COLUMNS, values.shape[-1]), "float32", {})
    store.append(values)
    return store, open_scene(write_scene(folder / "scene.tif", 39, 60), NAMES)


def cells_of(path: Path) -> np.ndarray:
    """Return the colour in the middle of each cell of the picture's right half: (rows, columns, 3)."""
    with Image.open(path) as opened:
        assert opened.size == (2 * LONGEST_PX + GAP_PX, round(39 / 60 * LONGEST_PX))
        right = np.asarray(opened.convert("RGB"))[:, LONGEST_PX + GAP_PX :]
    side = LONGEST_PX / COLUMNS
    rows, columns = ((np.arange(count) + 0.4) * side for count in (ROWS, COLUMNS))
    return right[rows.astype(int)][:, columns.astype(int)]


def test_clusters_that_are_planted_get_a_colour_each_in_their_place(tmp_path: Path) -> None:
    draw = np.random.Generator(np.random.Philox(2))
    kind = draw.integers(3, size=(ROWS, COLUMNS))
    values = 9 * draw.normal(size=(3, WIDTH))[kind] + 0.1 * draw.normal(size=(ROWS, COLUMNS, WIDTH))
    values[0, :4] = np.nan
    store, scene = stored(tmp_path, values.astype(np.float32))
    colours = cells_of(write_preview(store, scene, CELL_PX, tmp_path / "out.png", "kmeans", 3))
    assert (colours[0, :4] == 255).all()
    there = np.isfinite(values[..., 0])
    found = [np.unique(colours[there & (kind == number)], axis=0) for number in range(3)]
    assert [len(own) for own in found] == [1, 1, 1] and len({tuple(own[0]) for own in found}) == 3
    again = write_preview(store, scene, CELL_PX, tmp_path / "again.png", "kmeans", 3)
    assert again.read_bytes() == (tmp_path / "out.png").read_bytes()


def test_components_are_scikit_learns(tmp_path: Path) -> None:
    draw = np.random.Generator(np.random.Philox(4))
    values = (draw.normal(size=(ROWS, COLUMNS, WIDTH)) * np.geomspace(9, 0.1, WIDTH) + 3).astype(np.float32)
    store, scene = stored(tmp_path, values)
    colours = cells_of(write_preview(store, scene, CELL_PX, tmp_path / "out.png", "pca"))
    flat = values.reshape(-1, WIDTH)
    along = PCA(3).fit_transform(flat)
    low, high = np.percentile(along, [1, 99], axis=0)
    share = (along - low) / (high - low)
    shown = colours.reshape(-1, 3) / 255
    for channel in range(3):  # the sign of a component is nobody's
        expected = np.clip([share[:, channel], 1 - share[:, channel]], 0, 1)
        assert np.abs(shown[:, channel] - expected).max(1).min() < 0.01


@pytest.mark.parametrize("kind", ["pca", "kmeans"])
def test_a_scene_without_data_is_white(tmp_path: Path, kind: str) -> None:
    store, scene = stored(tmp_path, np.full((ROWS, COLUMNS, WIDTH), np.nan, np.float32))
    assert (cells_of(write_preview(store, scene, CELL_PX, tmp_path / "out.png", kind)) == 255).all()


def test_fewer_values_and_cells_than_colours() -> None:
    flat = np.array([[1.0, 2.0], [1.0, 4.0]], np.float32)
    assert by_components(flat)(flat).shape == (2, 3)
    assert by_components(flat[:1])(flat[:1]).dtype == np.uint8
    assert len(np.unique(by_clusters(flat, 8, 0)(flat), axis=0)) == 2
