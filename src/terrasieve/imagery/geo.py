"""Geography: footprints in degrees, pixel sizes in metres, distances, and an order that keeps neighbours together.

Used by ``headers`` and ``curate.scan`` (footprints, ground sample distance) and by the sampling of pairs (distances,
Hilbert order). Coordinates are EPSG:4326 degrees, longitude first, on WGS 84; an affine transform is the six numbers
(a, b, c, d, e, f) with x = a * column + b * row + c and y = d * column + e * row + f.

Sources: GeoJSON (RFC 7946, section 3.1.9) for the cut at the antimeridian; J. Skilling, "Programming the Hilbert curve"
(2004); the haversine formula on the mean Earth radius of the IUGG.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import shapely
from numpy.typing import ArrayLike, NDArray
from pyproj import CRS, Geod, Transformer
from pyproj.exceptions import CRSError, ProjError

from terrasieve.imagery.sphere import EARTH_RADIUS_KM

Affine = tuple[float, float, float, float, float, float]

_GEOD = Geod(ellps="WGS84")
_STEPS = 32  # points per edge of a footprint that is not straight in degrees


@lru_cache(maxsize=256)
def _to_degrees(crs: str) -> Transformer | None:
    """Return the transformer to longitude and latitude; None for a CRS that has no place on Earth (LOCAL_CS)."""
    try:
        return Transformer.from_crs(CRS.from_user_input(crs), "EPSG:4326", always_xy=True)
    except (CRSError, ProjError):
        return None


def is_on_earth(crs: str) -> bool:
    """Tell whether a CRS is known and can be turned into longitude and latitude."""
    return _to_degrees(crs) is not None


@lru_cache(maxsize=256)
def _unit_m(crs: str) -> float | None:
    """Return metres per unit of a projected CRS; None for degrees."""
    system = CRS.from_user_input(crs)
    return system.axis_info[0].unit_conversion_factor if system.is_projected else None


def _lonlat(transform: Affine, crs: str, columns: ArrayLike, rows: ArrayLike) -> NDArray[np.float64] | None:
    """Return (N, 2) degrees of pixel corners, unwrapped along the sequence; None when any is outside the projection."""
    to_degrees = _to_degrees(crs)
    if to_degrees is None:
        return None
    columns, rows = np.asarray(columns, np.float64), np.asarray(rows, np.float64)
    a, b, c, d, e, f = transform
    x, y = a * columns + b * rows + c, d * columns + e * rows + f
    if crs != "EPSG:4326":  # pyproj would wrap a 0..360 grid, of which the order along the ring is kept here
        x, y = to_degrees.transform(x, y)
        x = np.unwrap(x, period=360.0) if np.isfinite(x).all() else x
    degrees = np.stack([x, y], axis=-1)
    return degrees if np.isfinite(degrees).all() else None


def centre(transform: Affine, crs: str, width: int, height: int) -> tuple[float, float] | None:
    """Return the longitude (-180 to 180) and latitude of an image's centre; None where it has no place on Earth."""
    degrees = _lonlat(transform, crs, [width / 2], [height / 2])
    return None if degrees is None else (float((degrees[0, 0] + 180) % 360 - 180), float(degrees[0, 1]))


def gsd_m(transform: Affine, crs: str, width: int, height: int) -> float | None:
    """Return the side in metres of a pixel at the image's centre, the square root of its area, to a micrometre.

    A projected CRS is taken at its word (10 m stays 10.0) where its scale is true to 5 %; elsewhere (Web Mercator far
    from the equator, degrees) the pixel is measured on the WGS 84 ellipsoid. None where it has no place on Earth.
    """
    a, b, _, d, e, _ = transform
    unit = _unit_m(crs) if _to_degrees(crs) is not None else None
    nominal = None if unit is None else abs(a * e - b * d) ** 0.5 * unit
    half = max(min(width, height, 64) / 2, 0.5)  # a short baseline across the centre, long enough for float64
    columns = np.array([width / 2 - half, width / 2 + half, width / 2, width / 2])
    rows = np.array([height / 2, height / 2, height / 2 - half, height / 2 + half])
    points = _lonlat(transform, crs, columns, rows)
    if points is None:
        return nominal
    lon, lat = points.T
    _, _, (across, down) = _GEOD.inv(lon[::2], lat[::2], lon[1::2], lat[1::2])
    measured = float((across * down) ** 0.5 / (2 * half))
    return round(nominal if nominal and abs(measured / nominal - 1) < 0.05 else measured, 6)


def footprint(transform: Affine, crs: str, width: int, height: int) -> shapely.Polygon | shapely.MultiPolygon | None:
    """Return the outline of an image in EPSG:4326.

    Edges that bend in degrees are densified; a footprint that crosses the antimeridian is cut into a MultiPolygon, and
    one around a pole is closed along the pole's edge of the map.

    Args:
        transform: pixel to CRS.
        crs: "EPSG:32721", WKT or anything that pyproj reads.
        width: pixels.
        height: pixels.

    Returns:
        The polygon, longitudes in [-180, 180]; None when the CRS has no place on Earth or a corner lies outside it.
    """
    ring = _ring(transform, crs, width, height, 2)
    if ring is None:
        return None
    bend = np.abs(ring[1::2] - (ring[0:-1:2] + ring[2::2]) / 2).max()
    pixel = np.ptp(ring, axis=0).max() / max(width, height)
    if bend < pixel / 2 and np.ptp(ring[:, 0]) < 90:
        ring = ring[::2]
    else:
        ring = _ring(transform, crs, width, height, _STEPS)
        if ring is None:
            return None
    turn = ring[-1, 0] - ring[0, 0]
    if abs(turn) > 180:  # the outline goes once around a pole
        pole = float(np.copysign(90, ring[:, 1].mean()))
        ring = np.vstack([ring, [ring[-1, 0], pole], [ring[0, 0], pole], ring[:1]])
    return _cut(shapely.Polygon(ring))


def window_places(
    transform: Affine, crs: str, windows: NDArray[np.integer[Any]]
) -> tuple[list[Any], NDArray[np.float64]]:
    """Return the outlines and centres of many windows of one image, as :func:`footprint` and :func:`centre` give them.

    Args:
        transform: pixel to CRS, of the image.
        crs: "EPSG:32721", WKT or anything that pyproj reads.
        windows: (n, 4) x, y, width, height in pixels.

    Returns:
        n polygons, None where a window has no place on Earth; (n, 2) longitudes and latitudes, NaN where it has none.
    """
    x, y, width, height = windows.T.astype(np.float64)
    around = np.array([0, 0, 0.5, 0, 1, 0, 1, 0.5, 1, 1, 0.5, 1, 0, 1, 0, 0.5, 0, 0, 0.5, 0.5]).reshape(-1, 2)
    columns, rows = x[:, None] + width[:, None] * around[:, 0], y[:, None] + height[:, None] * around[:, 1]
    a, b, c, d, e, f = transform
    degrees = np.full((*columns.shape, 2), np.nan)
    to_degrees = _to_degrees(crs)
    if to_degrees is not None:
        points = a * columns + b * rows + c, d * columns + e * rows + f
        degrees = np.stack(points if crs == "EPSG:4326" else to_degrees.transform(*points), axis=-1)
    ring, centres = degrees[:, :9], degrees[:, 9].copy()
    with np.errstate(invalid="ignore"):
        bend = np.abs(ring[:, 1::2] - (ring[:, 0:-1:2] + ring[:, 2::2]) / 2).max(axis=(1, 2))
        spread = np.ptp(ring, axis=1)
        pixel = spread.max(axis=1) / np.maximum(width, height)
        plain = (bend < pixel / 2) & (spread[:, 0] < 90) & (np.abs(ring[..., 0]).max(axis=1) <= 180)
    outlines: list[Any] = [None] * len(windows)
    for row, shape in zip(
        np.flatnonzero(plain).tolist(), shapely.orient_polygons(shapely.polygons(ring[plain, ::2])), strict=True
    ):
        outlines[row] = shape
    for row in np.flatnonzero(~plain).tolist():
        own = (a, b, a * x[row] + b * y[row] + c, d, e, d * x[row] + e * y[row] + f)
        outlines[row] = footprint(own, crs, int(width[row]), int(height[row]))
    centres[~np.isfinite(centres).all(axis=1)] = np.nan
    centres[:, 0] = (centres[:, 0] + 180) % 360 - 180
    return outlines, centres


def _ring(transform: Affine, crs: str, width: int, height: int, steps: int) -> NDArray[np.float64] | None:
    along = np.arange(steps) / steps
    flat, full = np.zeros(steps), np.ones(steps)
    columns = np.concatenate([along, full, 1 - along, flat, [0]]) * width
    rows = np.concatenate([flat, along, full, 1 - along, [0]]) * height
    return _lonlat(transform, crs, columns, rows)


def _cut(polygon: shapely.Polygon) -> shapely.Polygon | shapely.MultiPolygon:
    west, _, east, _ = polygon.bounds
    if not polygon.is_valid:
        polygon = shapely.make_valid(polygon)
    if west >= -180 and east <= 180:
        return shapely.orient_polygons(polygon)
    pieces: list[Any] = []
    for turn in range(int((west + 180) // 360), int(-(-(east - 180) // 360)) + 1):
        piece = shapely.intersection(polygon, shapely.box(360 * turn - 180, -90, 360 * turn + 180, 90))
        parts = shapely.get_parts(shapely.transform(piece, lambda xy, turn=turn: xy - [360 * turn, 0]))
        pieces += [part for part in parts if part.geom_type == "Polygon" and part.area > 0]
    return shapely.orient_polygons(shapely.union_all(pieces))  # pieces of a whole turn meet again


def haversine_km(lon1: ArrayLike, lat1: ArrayLike, lon2: ArrayLike, lat2: ArrayLike) -> NDArray[np.float64]:
    """Return great-circle distances in kilometres on a sphere of 6371.0088 km; inputs in degrees broadcast."""
    lon1, lat1, lon2, lat2 = (np.radians(np.asarray(degrees, np.float64)) for degrees in (lon1, lat1, lon2, lat2))
    chord = np.sin((lat2 - lat1) / 2) ** 2 + np.cos(lat1) * np.cos(lat2) * np.sin((lon2 - lon1) / 2) ** 2
    return np.asarray(2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.clip(chord, 0, 1))))


def hilbert_order(lon: ArrayLike, lat: ArrayLike, bits: int = 16) -> NDArray[np.int64]:
    """Return each point's place along a Hilbert curve over the plate carrée map, so that sorting keeps neighbours.

    Args:
        lon: degrees, any shape; wrapped to [-180, 180).
        lat: degrees, the same shape.
        bits: cells per axis = 2 ** bits, at most 31.

    Returns:
        Keys in [0, 4 ** bits), int64.
    """
    side = 1 << bits
    wrapped = (np.asarray(lon, np.float64) + 180) % 360 / 360
    x = np.minimum((wrapped * side).astype(np.int64), side - 1)
    y = np.clip(((np.asarray(lat, np.float64) + 90) / 180 * side).astype(np.int64), 0, side - 1)
    keys = np.zeros_like(x)
    for bit in range(bits - 1, -1, -1):
        half = np.int64(1) << bit
        right, up = (x & half) > 0, (y & half) > 0
        keys += half * half * ((3 * right) ^ up)
        # Rotate the quadrant so that the curve inside it starts and ends where its neighbours' do.
        flip = ~up & right
        x, y = np.where(flip, half - 1 - (x & (half - 1)), x), np.where(flip, half - 1 - (y & (half - 1)), y)
        x, y = np.where(up, x, y), np.where(up, y, x)
    return keys
