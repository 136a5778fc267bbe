"""Places: where every image of a manifest lies, as arrays, and what is wrong with some of them.

Between ``manifest`` and ``pairs``. A footprint is kept as its four corners in degrees, unwrapped around its centre, so
that nothing special happens at the antimeridian; ``box`` turns them into a rectangle in metres of any image's CRS.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from terrasieve.errors import UserError
from terrasieve.imagery.sphere import EARTH_RADIUS_M

if TYPE_CHECKING:
    from pyproj import Transformer

_CHUNK = 1 << 16  # images at a time, so that what is in between stays small
_POLYGON = 3  # shapely's number of the type
_READ = ["id", "uri", "geometry", "lon", "lat", "crs", "gsd_m", "width", "height", "datetime"]
_FOUR_CORNERS = np.frombuffer(b"\x01\x03\0\0\0\x01\0\0\0\x05\0\0\0", np.uint8)  # WKB: a polygon, a ring, five points
_FOUR_CORNERS_BYTES = len(_FOUR_CORNERS) + 5 * 2 * 8


@dataclass(frozen=True)
class Places:
    """Places of n images.

    Attributes:
        centre: (n, 2) float64, longitude and latitude in degrees, NaN when unknown.
        corners: (n, 4, 2) float64, those of the footprint's corners in order; all the centre where there is none.
        radius_m: (n,) float32, from the centre to the farthest corner; 0 for a point, NaN when unknown.
        crs: (n,) int16, index into ``names``; -1 when unknown.
        names: "EPSG:32721" or WKT.
        time: (n,) float64, seconds since 1970, NaN when unknown.
        site: (n,) int64, images of one folder share it.
        doubts: images by what is doubtful about their place.
        examples: some of their ids, by the same words.
    """

    centre: np.ndarray
    corners: np.ndarray
    radius_m: np.ndarray
    crs: np.ndarray
    names: list[str]
    time: np.ndarray
    site: np.ndarray
    doubts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.corners)

    def warnings(self) -> list[str]:
        """Say what is doubtful, each in a sentence with its count and some images."""
        return warnings_of(self.doubts, self.examples, len(self))

    def boxes(self, rows: np.ndarray, anchor: int) -> np.ndarray:
        """Return rectangles around images in an anchor's CRS, which images of the same CRS fill exactly.

        Around an image in degrees, or without a CRS, they are in metres of a plate carree that is true at its centre.

        Args:
            rows: (k,) int64.
            anchor: a row.

        Returns:
            (k, 4) float64: left, top, right, bottom; not finite where the anchor's projection does not reach.
        """
        corners = self.corners[rows]
        lon0, lat0 = self.centre[anchor]
        lon = corners[..., 0] + 360 * np.round((lon0 - corners[..., 0]) / 360)
        transformer = _from_degrees(self.names[self.crs[anchor]]) if self.crs[anchor] >= 0 else None
        if transformer is not None:
            x, y = transformer.transform(lon, corners[..., 1])
        else:
            x = np.radians(lon - lon0) * np.cos(np.radians(lat0)) * EARTH_RADIUS_M
            y = np.radians(corners[..., 1] - lat0) * EARTH_RADIUS_M
        return np.stack([x.min(axis=1), y.max(axis=1), x.max(axis=1), y.min(axis=1)], axis=1)


def warnings_of(doubts: Counter[str], examples: dict[str, list[str]], images: int) -> list[str]:
    """Say what is doubtful about images, counted and listed: see ``Places``."""
    return [
        f"{count:,} of {images:,} images have {words}, e.g. {', '.join(examples[words][:3])}"
        for words, count in doubts.items()
    ]


@lru_cache(maxsize=256)
def _from_degrees(name: str) -> Transformer | None:
    """Return the transformer from degrees into a projected CRS; None for one in degrees."""
    # Here, not above: a machine without geographic libraries trains and measures on pixels in memory.
    from pyproj import CRS, Transformer

    system = CRS.from_user_input(name)
    return Transformer.from_crs("EPSG:4326", system, always_xy=True) if system.is_projected else None


def find_places(table: pa.Table) -> Places:
    """Collect the places of a manifest's kept rows, in their order (as ``images.from_table`` keeps them).

    Args:
        table: a manifest's columns id, uri, geometry, lon, lat, crs, gsd_m, width, height, datetime, keep.

    Raises:
        UserError: latitudes beyond 90 degrees, which are longitudes most likely.
    """
    keep = pc.fill_null(table["keep"], False)
    kept = table.select(_READ)
    kept = kept if pc.all(keep).as_py() else kept.filter(keep)  # a copy only where it is needed: there may be millions
    lon, lat = (_floats(kept[name]) for name in ("lon", "lat"))
    _check_order(kept, lon, lat)
    centre = np.stack([lon, lat], axis=1)
    del lon, lat
    names = [name for name in pc.unique(kept["crs"]).to_pylist() if name is not None]
    crs = pc.fill_null(pc.index_in(kept["crs"], pa.array(names, pa.string())), -1).to_numpy()
    corners = np.full((len(kept), 4, 2), np.nan)
    for start in range(0, len(kept), _CHUNK):
        part = slice(start, start + _CHUNK)
        _fill(corners[part], kept["geometry"][start : start + _CHUNK], centre[part], crs[part], names)
    site = _sites(kept["uri"])
    time = _floats(pc.divide(pc.cast(kept["datetime"], pa.int64()), 1e6))
    places = Places(centre, corners, np.empty(0, np.float32), crs.astype(np.int16), names, time, site)
    return _doubted(places, kept)


def _sites(uri: pa.ChunkedArray) -> np.ndarray:
    """Number the folders, (n,) int64; chunk by chunk, since their names all at once would take much memory."""
    folders = [pc.replace_substring_regex(part, r"[^/]*$", "").dictionary_encode() for part in uri.chunks]
    parts = pa.chunked_array(folders, pa.dictionary(pa.int32(), uri.type)).unify_dictionaries().chunks
    return np.concatenate([np.empty(0, np.int64), *(part.indices.to_numpy() for part in parts)]).astype(np.int64)


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.fill_null(pc.cast(column, pa.float64()), np.nan).to_numpy(), np.float64)


def _check_order(kept: pa.Table, lon: np.ndarray, lat: np.ndarray) -> None:
    wrong = np.flatnonzero(np.abs(lat) > 90)
    if len(wrong):
        row = int(wrong[0])
        raise UserError(
            f"{len(wrong):,} of {len(kept):,} images have a latitude beyond 90 degrees, the first one "
            f"{kept['uri'][row].as_py()} (lon {lon[row]}, lat {lat[row]}). Longitude and latitude are swapped, most "
            "likely: correct the CSV or the metadata that they come from, and index again."
        )


def _fill(
    corners: np.ndarray, geometry: pa.ChunkedArray, centre: np.ndarray, crs: np.ndarray, names: list[str]
) -> None:
    """Set corners from footprints; a point, or a place without a footprint, has four equal corners."""
    import shapely

    corners[:] = centre[:, None]
    plain, rings = _four_corners(geometry)
    corners[plain] = rings[:, :4]
    rest = np.flatnonzero(~plain & geometry.is_valid().to_numpy())
    shapes = shapely.from_wkb(geometry.take(pa.array(rest)).to_numpy())
    plain = (shapely.get_type_id(shapes) == _POLYGON) & (shapely.get_num_coordinates(shapes) == 5)
    corners[rest[plain]] = shapely.get_coordinates(shapes[plain]).reshape(-1, 5, 2)[:, :4]
    areal = (shapely.get_dimensions(shapes) == 2) & ~plain & ~shapely.is_empty(shapes)
    for row, shape in zip(rest[areal], shapes[areal], strict=True):  # cut at the antimeridian, around a pole, or bent
        name = names[crs[row]] if crs[row] >= 0 else None
        corners[row] = _enclosed(shapely.get_coordinates(shape), centre[row, 0], name)


def _four_corners(geometry: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Read polygons of four corners out of WKB, which nearly all footprints are: no object is made of any.

    Returns:
        (n,) bool, which are such; (k, 5, 2) their rings in degrees, closed.
    """
    array = pc.cast(geometry.combine_chunks(), pa.large_binary())
    starts = np.frombuffer(array.buffers()[1], np.int64, len(array) + 1, array.offset * 8)
    plain = np.diff(starts) == _FOUR_CORNERS_BYTES
    if not plain.any():
        return plain, np.empty((0, 5, 2))
    values = np.frombuffer(array.buffers()[2], np.uint8)
    bytes_of = np.lib.stride_tricks.sliding_window_view(values, _FOUR_CORNERS_BYTES)[starts[:-1][plain]]
    such = (bytes_of[:, : len(_FOUR_CORNERS)] == _FOUR_CORNERS).all(axis=1)
    plain[plain] = such
    rings = np.ascontiguousarray(bytes_of[such, len(_FOUR_CORNERS) :]).view("<f8")
    return plain, rings.reshape(-1, 5, 2)


def _enclosed(points: np.ndarray, lon0: float, name: str | None) -> list[tuple[float, float]]:
    """Return the corners, in degrees, of a rectangle around points: upright in the image's CRS."""
    x, y = points[:, 0] + 360 * np.round((lon0 - points[:, 0]) / 360), points[:, 1]
    transformer = None if name is None else _from_degrees(name)
    if transformer is not None:
        x, y = transformer.transform(x, y)
    west, east, south, north = x.min(), x.max(), y.min(), y.max()
    around = np.array([(west, north), (east, north), (east, south), (west, south)])
    if transformer is not None:
        around = np.stack(transformer.transform(around[:, 0], around[:, 1], direction="INVERSE"), axis=1)
    return [(float(lon), float(lat)) for lon, lat in around]


def unit_vectors(degrees: np.ndarray) -> np.ndarray:
    """Turn longitudes and latitudes (..., 2) into points of the unit sphere (..., 3)."""
    lon, lat = np.radians(degrees[..., 0]), np.radians(degrees[..., 1])
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


_NO_PLACE = "no place"
_NO_CRS = "a footprint without a CRS"
_NO_AREA = "a footprint without area"
_OTHER_GSD = "a footprint that contradicts the GSD by more than 10 %"
_SWAPPED = "longitude and latitude swapped, as their footprint shows"
_OFF = "a longitude and latitude that are not their footprint's centre"
_OUTGROWN = (
    "the corner and the size in pixels of another image of their folder, but a footprint more than 10 % wider, so that "
    "the GSD of one of the two is wrong"
)


def _doubted(places: Places, kept: pa.Table) -> Places:
    """Set the radii and count what is doubtful about images' places."""
    radius_m, side_m = (np.empty(len(places), np.float32) for _ in range(2))
    found = {words: np.zeros(len(places), bool) for words in (_NO_PLACE, _NO_CRS, _NO_AREA, _OTHER_GSD, _SWAPPED, _OFF)}
    for start in range(0, len(places), _CHUNK):
        part = slice(start, start + _CHUNK)
        centre, corners, rows = places.centre[part], places.corners[part], kept.slice(start, _CHUNK)
        measured = _measure(centre, corners)
        radius_m[part], side_m[part] = measured.radius_m, measured.side_m
        gsd_m, width, height = (_floats(rows[name]) for name in ("gsd_m", "width", "height"))
        known = np.isfinite(measured.radius_m)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = measured.side_m / np.sqrt(width * height) / gsd_m
        off = known & (measured.side_m > 0) & (measured.off_m > 0.25 * measured.side_m)
        exchanged_m = _measure(centre[off, ::-1], corners[off]).off_m
        swapped = np.zeros_like(off)
        swapped[off] = exchanged_m <= np.maximum(0.25 * measured.side_m[off], 0.01 * measured.off_m[off])
        found[_NO_PLACE][part] = ~known
        found[_NO_CRS][part] = known & (measured.radius_m > 0) & (places.crs[part] < 0)
        found[_NO_AREA][part] = known & (measured.side_m < 1e-3)
        found[_OTHER_GSD][part] = (ratio > 0) & (np.abs(ratio - 1) > 0.1)
        found[_SWAPPED][part], found[_OFF][part] = swapped, off & ~swapped
    sizes_px = tuple(pc.fill_null(kept[name], 0).to_numpy() for name in ("width", "height"))
    found[_OUTGROWN] = _outgrown(places, sizes_px, side_m)
    doubts = Counter({words: int(which.sum()) for words, which in found.items() if which.any()})
    examples: dict[str, list[Any]] = {
        words: kept["uri"].take(pa.array(np.flatnonzero(found[words])[:5])).to_pylist() for words in doubts
    }
    return replace(places, radius_m=radius_m, doubts=doubts, examples=examples)


class _Measured(NamedTuple):
    """Footprints on the mean sphere: from the centre to the farthest corner and to their middle; root of their area."""

    radius_m: np.ndarray
    off_m: np.ndarray
    side_m: np.ndarray


def _measure(centre: np.ndarray, corners: np.ndarray) -> _Measured:
    middle, points = unit_vectors(centre), unit_vectors(corners)
    first, second = (np.linalg.norm(points[:, k + 1] - points[:, k], axis=1) for k in (0, 1))
    mean = points.sum(axis=1)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    return _Measured(
        _metres(np.linalg.norm(points - middle[:, None], axis=2).max(axis=1)),
        _metres(np.linalg.norm(mean - middle, axis=1)),
        np.sqrt(first * second) * EARTH_RADIUS_M,
    )


def _metres(chord: np.ndarray) -> np.ndarray:
    return np.asarray(2 * np.arcsin(np.minimum(chord / 2, 1)) * EARTH_RADIUS_M)


def _outgrown(places: Places, sizes_px: tuple[np.ndarray, ...], side_m: np.ndarray) -> np.ndarray:
    """Find images that begin at the corner of another one of their folder, with as many pixels but of another size.

    Files of one chip whose pixels were resampled to one grid, but not the georeference of all of them, are like that.
    """
    with np.errstate(invalid="ignore"):
        key = places.site.view(np.uint64).copy()
        for part in (*places.corners[:, 0].T, *sizes_px):
            key *= np.uint64(0x9E3779B97F4A7C15)
            key += np.round(part * 1e7).astype(np.int64).view(np.uint64)
    rows = np.flatnonzero(np.isfinite(places.corners[:, 0]).all(axis=1) & (side_m > 0)).astype(np.int32)
    key = key[rows]
    order = np.argsort(key, kind="stable")
    rows, key = rows[order], key[order]
    larger = np.zeros(len(places), bool)
    if len(rows):
        starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
        least = np.minimum.reduceat(side_m[rows], starts).repeat(np.diff(np.r_[starts, len(rows)]))
        larger[rows] = side_m[rows] > 1.1 * least
    return larger
