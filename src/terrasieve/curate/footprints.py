"""Footprints: pairs of images that show the same ground, by coordinates and by windows of the same file.

The exact half of ``curate.overlap``. Windows of one file share pixels whatever the file knows of the Earth. Footprints
are swept from west to east, each stretch through a tree of its own, so that memory is that of a stretch. Offsets are
integers where both grids are the same but for a shift, and null where pixel sizes, directions or projections differ:
there only the shared fraction is a fact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import shapely
from numpy.typing import NDArray
from pyproj import Transformer

from terrasieve import manifest
from terrasieve.curate.rows import Rows

_BLOCK = 65_536
_STRETCH = 50_000  # footprints of one tree
_SQUARE = 1e-3  # a grid whose outline differs from its bounds by more of its area is not north-up
_POLYGONS = (3, 6)  # shapely's numbers of Polygon and MultiPolygon
_COLUMNS = ("id", "uri", "window", "width", "height", "geometry")


class Overlaps(NamedTuple):
    """Pairs of rows.

    Attributes:
        a, b: (m,) int64 numbers of rows, a < b.
        dx, dy: (m,) float64 pixels, a[y + dy, x + dx] = b[y, x]; NaN where the grids differ.
        fraction: (m,) float64, share of the smaller image that the other shows too.
        score: (m,) float64, how sure the pair is, [0, 1]; coordinates are.
    """

    a: NDArray[np.int64]
    b: NDArray[np.int64]
    dx: NDArray[np.float64]
    dy: NDArray[np.float64]
    fraction: NDArray[np.float64]
    score: NDArray[np.float64]


def together(parts: Sequence[Overlaps]) -> Overlaps:
    """Put pairs one behind the other."""
    return Overlaps(*(np.concatenate(column) for column in zip(*parts, strict=True)))


class Places(NamedTuple):
    """Where rows lie.

    Attributes:
        parent: (n,) uint64, hash of the file.
        box: (n, 4) int32, x, y, width, height in pixels of the file.
        windowed: (n,) bool, whether the row is a window of its file.
        placed: (n,) bool, whether its footprint is an area.
    """

    parent: NDArray[np.uint64]
    box: NDArray[np.int32]
    windowed: NDArray[np.bool_]
    placed: NDArray[np.bool_]


def places(rows: Rows) -> Places:
    """Read where all rows lie; those that are not kept lie nowhere."""
    n = len(rows)
    found = Places(np.zeros(n, np.uint64), np.zeros((n, 4), np.int32), np.zeros(n, bool), np.zeros(n, bool))
    for first, table in rows.blocks(_COLUMNS, _BLOCK):
        here = slice(first, first + len(table))
        whole = table["window"].is_null().to_numpy()
        found.windowed[here] = ~whole
        names = (row_id if one else manifest.row_id(uri) for row_id, uri, one in _names(table, whole))
        found.parent[here] = np.fromiter((int(name, 16) for name in names), np.uint64, len(table))
        box = found.box[here]
        box[:, 2] = table["width"].fill_null(0).to_numpy()
        box[:, 3] = table["height"].fill_null(0).to_numpy()
        windows = table["window"].drop_null()
        if len(windows):
            box[~whole] = windows.combine_chunks().flatten().to_numpy().reshape(-1, 4)
        outlines = shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False))
        found.placed[here] = np.isin(shapely.get_type_id(outlines), _POLYGONS)
    found.placed[~rows.kept] = False
    return found


def _names(table: pa.Table, whole: NDArray[np.bool_]) -> Iterator[tuple[str, str, bool]]:
    return zip(table["id"].to_pylist(), table["uri"].to_pylist(), whole, strict=True)


def by_window(rows: Rows, where: Places, least: float, between: bool) -> Overlaps:
    """Find windows of the same file that share pixels.

    Args:
        rows: the images.
        where: they lie.
        least: shared fraction.
        between: only pairs of different manifests.
    """
    kept = np.flatnonzero(rows.kept & (where.box[:, 2] > 0))
    _, group, sizes = np.unique(where.parent[kept], return_inverse=True, return_counts=True)
    some = np.zeros(len(sizes), bool)
    some[group[where.windowed[kept]]] = True
    chosen = np.flatnonzero((sizes > 1)[group] & some[group])
    kept, group = kept[chosen], group[chosen]
    boxes = where.box[kept].astype(np.float64)
    apart = group * 4.0 * max(boxes[:, [0, 2]].max(initial=1), 1)  # each file on ground of its own
    left, top = boxes[:, 0] + apart, boxes[:, 1]
    shapes = shapely.box(left, top, left + boxes[:, 2], top + boxes[:, 3])
    one, two = _swept(shapes, np.arange(len(kept)))
    pairs = _checked(kept[one], kept[two], rows, between)
    a, b = where.box[pairs[:, 0]], where.box[pairs[:, 1]]
    return _gridded(pairs, a, b, (b[:, :2] - a[:, :2]).astype(np.float64), least)


def by_footprint(rows: Rows, where: Places, least: float, between: bool) -> Overlaps:
    """Find images whose footprints share ground; windows of one file are left to :func:`by_window`."""
    shapes, owners, crs = _footprints(rows, where)
    parts, index = shapely.get_parts(shapes, return_index=True)
    one, two = _swept(parts, owners[index])
    pairs = _checked(one, two, rows, between)
    same_file = where.parent[pairs[:, 0]] == where.parent[pairs[:, 1]]
    same_file &= where.windowed[pairs[:, 0]] | where.windowed[pairs[:, 1]]
    pairs = pairs[~same_file]
    at = np.searchsorted(owners, pairs)
    grids = _grids(shapes, crs, where.box[owners][:, 2:], np.unique(at))
    parallel = (crs[at[:, 0]] == crs[at[:, 1]]) & _same_pixels(grids[at[:, 0]], grids[at[:, 1]], where.box[pairs])
    gridded = pairs[parallel]
    a, b = grids[at[parallel, 0]], grids[at[parallel, 1]]
    offset = np.stack([(b[:, 0] - a[:, 0]) / a[:, 2], (a[:, 1] - b[:, 1]) / a[:, 3]], axis=1).round()
    exact = _gridded(gridded, where.box[gridded[:, 0]], where.box[gridded[:, 1]], offset, least)
    others, at = pairs[~parallel], at[~parallel]
    areas = np.minimum(shapely.area(shapes[at[:, 0]]), shapely.area(shapes[at[:, 1]]))
    fraction = shapely.area(shapely.intersection(shapes[at[:, 0]], shapes[at[:, 1]])) / np.maximum(areas, 1e-300)
    enough = fraction >= least
    nowhere = np.full(int(enough.sum()), np.nan)
    rest = Overlaps(others[enough, 0], others[enough, 1], nowhere, nowhere, fraction[enough], np.ones_like(nowhere))
    return together([exact, rest])


def _footprints(rows: Rows, where: Places) -> tuple[NDArray[np.object_], NDArray[np.int64], NDArray[np.object_]]:
    shapes, crs = [], []
    for first, table in rows.blocks(["geometry", "crs"], _BLOCK):
        here = np.flatnonzero(where.placed[first : first + len(table)])
        chosen = table.take(pa.array(here))
        shapes.append(shapely.from_wkb(chosen["geometry"].to_numpy(zero_copy_only=False)))
        crs.append(chosen["crs"].to_numpy(zero_copy_only=False))
    return np.concatenate(shapes), np.flatnonzero(where.placed), np.concatenate(crs)


def _swept(shapes: NDArray[np.object_], owners: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the owners of shapes that touch, a stretch of western edges at a time."""
    bounds = shapely.bounds(shapes).reshape(-1, 4)
    order = np.argsort(bounds[:, 0], kind="stable")
    west, east = bounds[order, 0], bounds[order, 2]
    found = [np.zeros((2, 0), np.int64)]
    for start in range(0, len(order), _STRETCH):
        chunk = order[start : start + _STRETCH]
        stop = int(np.searchsorted(west, east[start : start + _STRETCH].max(), side="right"))
        pool = order[start:stop]
        i, j = shapely.STRtree(shapes[pool]).query(shapes[chunk], predicate="intersects")
        later = j > i
        found.append(np.stack([owners[chunk[i[later]]], owners[pool[j[later]]]]))
    one, two = np.concatenate(found, axis=1)
    return one, two


def _checked(one: NDArray[np.int64], two: NDArray[np.int64], rows: Rows, between: bool) -> NDArray[np.int64]:
    """Return each pair once, (m, 2), lower row first, of two different rows and, if asked for, manifests."""
    pairs = np.sort(np.stack([one, two], axis=1), axis=1)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    if between:
        pairs = pairs[(rows.sides[pairs[:, 0]] == 0) & (rows.sides[pairs[:, 1]] > 0)]
    return np.unique(pairs, axis=0)


def _gridded(
    pairs: NDArray[np.int64],
    a: NDArray[np.int32],
    b: NDArray[np.int32],
    offset: NDArray[np.float64],
    least: float,
) -> Overlaps:
    """Count shared pixels; ``a`` and ``b`` are (m, 4) boxes of which only the sizes count."""
    size_a, size_b = a[:, 2:].astype(np.float64), b[:, 2:].astype(np.float64)
    common = np.clip(np.minimum(size_a, size_b + offset) - np.maximum(offset, 0), 0, None).prod(axis=1)
    fraction = common / np.maximum(np.minimum(size_a.prod(axis=1), size_b.prod(axis=1)), 1)
    enough = fraction >= least
    pairs, offset = pairs[enough], offset[enough]
    return Overlaps(pairs[:, 0], pairs[:, 1], offset[:, 0], offset[:, 1], fraction[enough], np.ones(len(pairs)))


def _grids(
    shapes: NDArray[np.object_], crs: NDArray[np.object_], sizes: NDArray[np.int32], wanted: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return (n, 4): left, top, pixel width, pixel height in units of the CRS; NaN where a grid is not north-up.

    The outline in degrees is turned back into the file's projection, so that no file has to be opened.
    """
    grids = np.full((len(shapes), 4), np.nan)
    for name in {crs[row] for row in wanted if crs[row]}:
        rows = wanted[(crs[wanted] == name) & (shapely.get_type_id(shapes[wanted]) == _POLYGONS[0])]
        back = Transformer.from_crs("EPSG:4326", name, always_xy=True)
        flat = shapely.transform(shapes[rows], lambda xy, back=back: np.stack(back.transform(*xy.T), axis=1))
        left, bottom, right, top = shapely.bounds(flat).reshape(-1, 4).T
        square = np.abs(shapely.area(flat) / ((right - left) * (top - bottom)) - 1) < _SQUARE
        width, height = sizes[rows].T
        values = np.stack([left, top, (right - left) / width, (top - bottom) / height], axis=1)
        grids[rows[square]] = values[square]
    return grids


def _same_pixels(a: NDArray[np.float64], b: NDArray[np.float64], boxes: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Tell where two grids have pixels of one size: they stay within a tenth of a pixel over the larger image."""
    longest = boxes[:, :, 2:].max(axis=(1, 2))
    with np.errstate(invalid="ignore"):
        drift = np.abs(a[:, 2:] / b[:, 2:] - 1).max(axis=1, initial=0) * longest
        return np.asarray(drift < 0.1)
