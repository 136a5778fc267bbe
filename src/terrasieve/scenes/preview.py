"""Preview: a map of features as a picture beside its scene, by principal components or by clusters.

After ``store``. Both are fitted to a keyed sample of the cells, so a picture of any scene takes seconds. Colours of
components: the first three as red, green and blue, stretched; of clusters: a palette in the order of the clusters along
the first component, so that neighbouring colours are alike in features.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.cluster import KMeans

from terrasieve import keyed
from terrasieve.files import written_aside
from terrasieve.imagery import stretch
from terrasieve.imagery.preview import preview as small
from terrasieve.scenes.scene import Scene
from terrasieve.scenes.store import RowStore
from terrasieve.train.picture import palette

LONGEST_PX, GAP_PX = 900, 8
_SAMPLE = 20_000  # cells
_BLOCK = 64  # rows coloured at a time
Colour = Callable[[NDArray[np.float32]], NDArray[np.uint8]]  # (n, D) finite features -> (n, 3)


def write_preview(
    store: RowStore, scene: Scene, cell_px: int, path: Path, kind: str, clusters: int = 8, seed: int = 0
) -> Path:
    """Draw a scene beside its features.

    Args:
        store: all rows of features, NaN where there is no data.
        scene: that they are of.
        cell_px: side of a cell in pixels of the scene.
        path: PNG to write.
        kind: "pca" or "kmeans".
        clusters: of "kmeans".
        seed: of the sample and of the clusters' beginnings.

    Returns:
        ``path``.
    """
    rows, columns, _ = store.shape
    picture = np.full((rows, columns, 3), 255, np.uint8)
    features = _sample(store, seed)
    if len(features):
        colour = by_components(features) if kind == "pca" else by_clusters(features, clusters, seed)
        for top in range(0, rows, _BLOCK):
            block = store.rows(top, top + _BLOCK)
            real = np.isfinite(block[..., 0])
            picture[top : top + len(block)][real] = colour(block[real])
    factor = LONGEST_PX / max(scene.width, scene.height)
    size = max(1, round(scene.width * factor)), max(1, round(scene.height * factor))
    scale = cell_px * factor
    whole = max(1, round(columns * scale)), max(1, round(rows * scale))
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    coloured = Image.fromarray(picture).resize(whole, how).crop((0, 0, *size))
    sheet = Image.new("RGB", (2 * size[0] + GAP_PX, size[1]), "white")
    sheet.paste(_shown(scene).resize(size, Image.Resampling.LANCZOS), (0, 0))
    sheet.paste(coloured, (size[0] + GAP_PX, 0))
    with written_aside(path) as aside:
        sheet.save(aside, "PNG", optimize=True)
    return path


def by_components(features_ND: NDArray[np.float32]) -> Colour:
    """Return what colours features by their first three principal components."""
    mean_D = features_ND.mean(0)
    axes_D3 = _axes(features_ND - mean_D, 3)
    along = (features_ND - mean_D) @ axes_D3
    low, high = np.percentile(along, [1, 99], axis=0)

    def colour(values: NDArray[np.float32]) -> NDArray[np.uint8]:
        share = ((values - mean_D) @ axes_D3 - low) / np.maximum(high - low, 1e-12)
        return np.asarray(np.rint(np.clip(share, 0, 1) * 255), np.uint8)

    return colour


def by_clusters(features_ND: NDArray[np.float32], clusters: int, seed: int) -> Colour:
    """Return what colours features by the nearest of ``clusters`` means."""
    first = int(keyed.numpy_generator(seed, "scene/kmeans").integers(2**31))
    found = KMeans(min(clusters, len(features_ND)), n_init=3, random_state=first).fit(features_ND)
    centres: NDArray[Any] = found.cluster_centers_
    axis = _axes(features_ND - features_ND.mean(0), 1)[:, 0]
    centres = centres[np.argsort(centres @ axis)].astype(np.float32)
    table = np.array(palette(len(centres)), np.uint8)
    half = (centres**2).sum(1) / 2

    def colour(values: NDArray[np.float32]) -> NDArray[np.uint8]:
        chosen: NDArray[np.uint8] = table[(values @ centres.T - half).argmax(1)]
        return chosen

    return colour


def _axes(centred_ND: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Return principal axes, (D, count), 0 where there are fewer; each one's largest entry is positive."""
    _, axes = np.linalg.eigh(centred_ND.T.astype(np.float64) @ centred_ND)
    top = axes[:, ::-1][:, :count]
    top = top * np.sign(np.take_along_axis(top, np.abs(top).argmax(0)[None], 0))
    return np.pad(top, ((0, 0), (0, count - top.shape[1]))).astype(np.float32)


def _sample(store: RowStore, seed: int) -> NDArray[np.float32]:
    rows, columns, width = store.shape
    drawn = keyed.numpy_generator(seed, "scene/sample").integers(rows * columns, size=_SAMPLE)
    chosen = np.unique(drawn) if rows * columns > _SAMPLE else np.arange(rows * columns)
    row, column = np.divmod(chosen, columns)
    parts = [np.zeros((0, width), np.float32)]
    for top in range(0, rows, _BLOCK):
        here = (row >= top) & (row < top + _BLOCK)
        block = store.rows(top, top + _BLOCK)[row[here] - top, column[here]]
        parts.append(block[np.isfinite(block[:, 0])])
    return np.concatenate(parts)


def _shown(scene: Scene) -> Image.Image:
    seen = small(scene.uri, None, scene.names, LONGEST_PX)
    shown = stretch.stretched(
        seen.rgb_3HW, seen.valid_HW, stretch.limits([seen.rgb_3HW], [seen.valid_HW], tail=0.02), no_data=1
    )
    return Image.fromarray(stretch.to_bytes(shown))
