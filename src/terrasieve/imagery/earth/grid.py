"""The pixel grid of a chip: which projection, which row and column, where on the globe.

Stands between a requested place and the world. A chip lies in its UTM zone (WGS 84), and in the polar stereographic
grids (UPS) beyond 84 N and 80 S. Its pixels are cells of one grid per zone and ground sample distance (GSD), whose
corner is the zone's origin: the requested centre moves by at most half a pixel, and in return any two chips of one
zone and GSD share whole pixels where they overlap. Inside, the southern half counts northings from the equator as
negative numbers, so the world does not break there; the file's CRS gets its 10 000 km back.
Source: NGA.SIG.0012 (UTM and UPS).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pyproj import Proj

NORTH, SOUTH = 0, 61  # the zone numbers that stand for the polar grids


@lru_cache(maxsize=64)
def projection(zone: int) -> Proj:
    """Return the projection of a UTM zone 1 to 60, or of ``NORTH`` or ``SOUTH``."""
    if 1 <= zone <= 60:
        return Proj(proj="utm", zone=zone, ellps="WGS84")
    return Proj(proj="stere", lat_0=90 if zone == NORTH else -90, k=0.994, x_0=2e6, y_0=2e6, ellps="WGS84")


def zone_of(lon: float, lat: float) -> int:
    """Return the zone of a position in degrees (without the exceptions of Norway and Svalbard)."""
    if lat >= 84.0:
        return NORTH
    if lat < -80.0:
        return SOUTH
    return int((lon + 180.0) // 6.0) % 60 + 1


@dataclass(frozen=True)
class Grid:
    """A rectangle of a zone's pixels.

    Attributes:
        zone: UTM zone, or ``NORTH`` or ``SOUTH``.
        gsd_m: pixel size in metres of the projection.
        column: of the first pixel, counted from the zone's origin.
        row: of the first pixel, counted downwards (southwards).
        size_px: width and height.
    """

    zone: int
    gsd_m: float
    column: int
    row: int
    size_px: int

    @classmethod
    def around(cls, lon: float, lat: float, gsd_m: float, size_px: int) -> Grid:
        """Return the grid whose centre is nearest to a position in degrees."""
        gsd_m = float(gsd_m)  # an integer would compile every kernel again
        zone = zone_of(lon, lat)
        x_m, y_m = projection(zone)(lon, lat)
        half = size_px / 2
        return cls(zone, gsd_m, round(x_m / gsd_m - half), round(-y_m / gsd_m - half), size_px)

    @property
    def bounds_m(self) -> tuple[float, float, float, float]:
        """Return left, bottom, right, top in the world's metres (negative northings south of the equator)."""
        g = self.gsd_m
        return self.column * g, -(self.row + self.size_px) * g, (self.column + self.size_px) * g, -self.row * g

    @property
    def is_south(self) -> bool:
        """Tell whether the chip's CRS is that of the southern half of a UTM zone."""
        return 1 <= self.zone <= 60 and self.row + self.size_px / 2 > 0

    @property
    def crs(self) -> str:
        """Return the EPSG code of the file."""
        if self.zone in (NORTH, SOUTH):
            return "EPSG:32661" if self.zone == NORTH else "EPSG:32761"
        return f"EPSG:{(32700 if self.is_south else 32600) + self.zone}"

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Return left, bottom, right, top in metres of :attr:`crs`."""
        left, bottom, right, top = self.bounds_m
        offset = 1e7 if self.is_south else 0.0
        return left, bottom + offset, right, top + offset

    @property
    def transform(self) -> tuple[float, float, float, float, float, float]:
        """Return the affine (a, b, c, d, e, f) from pixel corners to :attr:`crs`, as ``rasterio.Affine`` takes it."""
        left, _, _, top = self.bounds
        return self.gsd_m, 0.0, left, 0.0, -self.gsd_m, top

    @property
    def centre(self) -> tuple[float, float]:
        """Return longitude and latitude of the centre, degrees."""
        left, bottom, right, top = self.bounds_m
        lon, lat = projection(self.zone)((left + right) / 2, (bottom + top) / 2, inverse=True)
        return (lon + 180.0) % 360.0 - 180.0, lat

    def footprint(self) -> NDArray[np.float64]:
        """Return (5, 2) longitudes and latitudes of the corners as a closed ring, without a jump at 180 degrees."""
        left, bottom, right, top = self.bounds_m
        ring_x, ring_y = [left, right, right, left, left], [bottom, bottom, top, top, bottom]
        lon, lat = projection(self.zone)(np.array(ring_x), np.array(ring_y), inverse=True)
        if 1 <= self.zone <= 60:
            lon = lon - 360.0 * np.round((lon - self.centre[0]) / 360.0)
        return np.stack([lon, lat], axis=1)

    def to_pixel(self, x_m: float, y_m: float) -> tuple[float, float]:
        """Convert world metres to pixels: (0, 0) is the outer corner of the first pixel."""
        return x_m / self.gsd_m - self.column, -y_m / self.gsd_m - self.row
