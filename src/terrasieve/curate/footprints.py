"""Footprints: pairs of images that show the same ground, by coordinates and by windows of the same file.

The exact half of ``curate.overlap``. Windows of one file share pixels whatever the file knows of the Earth. Footprints
are swept from west to east, each stretch through a tree of its own, so that memory is that of a stretch. Offsets are
integers where both grids are the same but for a shift, and null where pixel sizes, directions or projections differ:
there only the shared fraction is a fact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
Shapes = NDArray[np.object_]
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
    if not where.windowed.any():
        return _gridded(np.zeros((0, 2), np.int64), where.box[:0], where.box[:0], np.zeros((0, 2)), least)
    kept = np.flatnonzero(rows.kept & (where.box[:, 2] > 0))
    _, group, sizes = np.unique(where.parent[kept], return_inverse=True, return_counts=True)
    some = np.zeros(len(sizes), bool)
    some[group[where.windowed[kept]]] = True
    chosen = np.flatnonzero((sizes > 1)[group] & some[group])
    kept, group = kept[chosen], group[chosen]
    boxes = where.box[kept].astype(np.float64)
    apart = group * 4.0 * max(boxes[:, [0, 2]].max(initial=1), 1)  # each file on ground of its own
    left, top = boxes[:, 0] + apart, boxes[:, 1]
    bounds = np.stack([left, top, left + boxes[:, 2], top + boxes[:, 3]], axis=1)
    one, two = _swept(bounds, lambda these: shapely.box(*bounds[these].T))
    pairs = _checked(kept[one], kept[two], rows, between)
    a, b = where.box[pairs[:, 0]], where.box[pairs[:, 1]]
    return _gridded(pairs, a, b, (b[:, :2] - a[:, :2]).astype(np.float64), least)


def by_footprint(rows: Rows, where: Places, least: float, between: bool) -> Overlaps:
    """Find images whose footprints share ground; windows of one file are left to :func:`by_window`."""
    outlines = _outlines(rows, where)
    one, two = _swept(outlines.bounds, outlines.shapes)
    pairs = _checked(outlines.owner[one], outlines.owner[two], rows, between)
    same_file = where.parent[pairs[:, 0]] == where.parent[pairs[:, 1]]
    same_file &= where.windowed[pairs[:, 0]] | where.windowed[pairs[:, 1]]
    pairs = pairs[~same_file]
    involved = np.unique(pairs)
    grids = _grids(outlines, np.searchsorted(outlines.owner, involved), where.box[involved][:, 2:])
    at, place = np.searchsorted(involved, pairs), np.searchsorted(outlines.owner, pairs)
    parallel = outlines.crs[place[:, 0]] == outlines.crs[place[:, 1]]
    parallel &= _same_pixels(grids[at[:, 0]], grids[at[:, 1]], where.box[pairs])
    gridded = pairs[parallel]
    a, b = grids[at[parallel, 0]], grids[at[parallel, 1]]
    offset = np.stack([(b[:, 0] - a[:, 0]) / a[:, 2], (a[:, 1] - b[:, 1]) / a[:, 3]], axis=1).round()
    exact = _gridded(gridded, where.box[gridded[:, 0]], where.box[gridded[:, 1]], offset, least)
    others, place = pairs[~parallel], place[~parallel]
    found = [exact]
    for start in range(0, len(others), _BLOCK):
        part = slice(start, start + _BLOCK)
        shape_a, shape_b = (outlines.shapes(place[part, side]) for side in (0, 1))
        found.append(_by_area(others[part], shape_a, shape_b, least))
    return together(found)


def _by_area(pairs: NDArray[np.int64], one: Shapes, two: Shapes, least: float) -> Overlaps:
    smaller = np.maximum(np.minimum(shapely.area(one), shapely.area(two)), 1e-300)
    fraction = shapely.area(shapely.intersection(one, two)) / smaller
    pairs, fraction = pairs[fraction >= least], fraction[fraction >= least]
    nowhere = np.full(len(pairs), np.nan)
    return Overlaps(pairs[:, 0], pairs[:, 1], nowhere, nowhere, fraction, np.ones(len(pairs)))


class _Outlines(NamedTuple):
    """Footprints of the rows ``owner``, as WKB, since shapes of 13 million images would fill ten times the memory."""

    owner: NDArray[np.int64]
    bounds: NDArray[np.float64]
    wkb: list[pa.Array]
    crs: NDArray[np.int32]  # numbers of ``names``
    names: list[str | None]

    def shapes(self, places: NDArray[np.int64]) -> Shapes:
        found = np.empty(len(places), object)
        ends = np.cumsum([len(part) for part in self.wkb])
        part = np.searchsorted(ends, places, side="right")  # ChunkedArray.take would copy them all
        order = np.argsort(part, kind="stable")
        for these in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
            if len(these):
                chunk = self.wkb[part[these[0]]]
                inside = places[these] - (ends[part[these[0]]] - len(chunk))
                found[these] = shapely.from_wkb(chunk.take(pa.array(inside)).to_numpy(zero_copy_only=False))
        return found


def _outlines(rows: Rows, where: Places) -> _Outlines:
    owner = np.flatnonzero(where.placed)
    bounds, crs = np.zeros((len(owner), 4)), np.zeros(len(owner), np.int32)
    chunks, known, done = [], dict[str | None, int](), 0
    for first, table in rows.blocks(["geometry", "crs"], _BLOCK):
        chosen = table.take(pa.array(np.flatnonzero(where.placed[first : first + len(table)])))
        here = slice(done, done + len(chosen))
        chunks.append(chosen["geometry"].combine_chunks())
        bounds[here] = shapely.bounds(shapely.from_wkb(chosen["geometry"].to_numpy())).reshape(-1, 4)
        crs[here] = [known.setdefault(name, len(known)) for name in chosen["crs"].to_pylist()]
        done += len(chosen)
    return _Outlines(owner, bounds, chunks, crs, list(known))


def _swept(
    bounds: NDArray[np.float64], shapes: Callable[[NDArray[np.int64]], Shapes]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the numbers of shapes that touch, a stretch of western edges at a time.

    A footprint cut at the antimeridian reaches from edge to edge and is met by all others; its polygon says with whom.
    """
    order = np.argsort(bounds[:, 0], kind="stable")
    west, east = bounds[order, 0], bounds[order, 2]
    found = [np.zeros((2, 0), np.int64)]
    for start in range(0, len(order), _STRETCH):
        chunk = order[start : start + _STRETCH]
        tree = shapely.STRtree(shapes(chunk))
        stop = int(np.searchsorted(west, east[start : start + _STRETCH].max(), side="right"))
        for begin in range(start, stop, _STRETCH):
            pool = order[begin : min(begin + _STRETCH, stop)]
            j, i = tree.query(shapes(pool), predicate="intersects")
            later = j + begin > i + start
            found.append(np.stack([chunk[i[later]], pool[j[later]]]))
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


def _grids(outlines: _Outlines, places: NDArray[np.int64], sizes: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return (n, 4): left, top, pixel width, pixel height in units of the CRS; NaN where a grid is not north-up.

    The outline in degrees is turned back into the file's projection, so that no file has to be opened.
    """
    grids = np.full((len(places), 4), np.nan)
    for start in range(0, len(places), _BLOCK):
        crs = outlines.crs[places[start : start + _BLOCK]]
        shapes = outlines.shapes(places[start : start + _BLOCK])
        plain = shapely.get_type_id(shapes) == _POLYGONS[0]
        for number in np.unique(crs):
            if not outlines.names[number]:
                continue
            these = np.flatnonzero(plain & (crs == number))
            back = Transformer.from_crs("EPSG:4326", outlines.names[number], always_xy=True)
            flat = shapely.transform(shapes[these], lambda xy, back=back: np.stack(back.transform(*xy.T), axis=1))
            left, bottom, right, top = shapely.bounds(flat).reshape(-1, 4).T
            square = np.abs(shapely.area(flat) / ((right - left) * (top - bottom)) - 1) < _SQUARE
            width, height = sizes[start + these].T
            values = np.stack([left, top, (right - left) / width, (top - bottom) / height], axis=1)
            grids[start + these[square]] = values[square]
    return grids


def _same_pixels(a: NDArray[np.float64], b: NDArray[np.float64], boxes: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Tell where two grids have pixels of one size: they stay within a tenth of a pixel over the larger image."""
    longest = boxes[:, :, 2:].max(axis=(1, 2))
    with np.errstate(invalid="ignore"):
        drift = np.abs(a[:, 2:] / b[:, 2:] - 1).max(axis=1, initial=0) * longest
        return np.asarray(drift < 0.1)
