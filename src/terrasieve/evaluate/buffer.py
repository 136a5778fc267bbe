"""Buffer: which rows lie too near to held-out ones, so that a test does not ask for what training has seen.

Used by ``splits``. What is measured: between images without an outline the great-circle distance of their places
(haversine, mean Earth radius); between images with outlines the distance of the outlines, in a plane that keeps
distances from the middle of the two (azimuthal equidistant), so that poles and the antimeridian are nothing special.
With a buffer of 0 those are too near that show the same ground. Trees over unit vectors find who has to be compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from terrasieve.data.places import Places, unit_vectors
from terrasieve.imagery.sphere import EARTH_RADIUS_KM

SAME_KM = 1e-3  # places no farther apart are the same
SHARED = 0.01  # of the smaller outline: more is the same ground, less is the edge of a grid
_CLASS = 4.0  # sizes of the images in one tree differ by this factor at most
_PAIRS = 1 << 20  # compared at once
Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


class Near(NamedTuple):
    """Rows that lie too near to held-out ones.

    Attributes:
        rows: (k,) ascending.
        held: (k,) the held-out row for which each one is too near; often the nearest, always too near.
        km: (k,) their distance as measured, 0 where they show the same ground.
    """

    rows: Rows
    held: Rows
    km: Floats


def too_near(places: Places, rows: Rows, held: Rows, buffer_km: float) -> Near:
    """Find the rows nearer than ``buffer_km`` to any held-out row, or that show the same ground.

    Args:
        places: of all images.
        rows: to be judged; all have places.
        held: held out; all have places.
        buffer_km: at 0 only the same ground is too near.
    """
    search = _Search(places, rows, buffer_km)
    level = np.floor(np.log(np.maximum(search.radius_km[held], SAME_KM)) / np.log(_CLASS))
    for size in np.unique(level):
        some = held[level == size]
        tree = cKDTree(search.xyz[some])
        search.by_nearest(tree, some)
        search.by_outline(tree, some)
    found = np.flatnonzero(search.by >= 0)
    order = found[np.argsort(rows[found], kind="stable")]
    return Near(rows[order], search.by[order], search.km[order])


class _Search:
    """Rows to be judged, and for each of them the held-out row for which it is too near (-1) and how near."""

    def __init__(self, places: Places, rows: Rows, buffer_km: float) -> None:
        self.places, self.rows, self.buffer_km = places, rows, buffer_km
        self.xyz = unit_vectors(places.centre)
        self.radius_km = np.maximum(places.radius_m.astype(np.float64) * 1.000001, 0) / 1000  # NaN stays
        self.by, self.km = np.full(len(rows), -1), np.full(len(rows), np.nan)

    def by_nearest(self, tree: cKDTree, some: Rows) -> None:
        """Judge rows by the held-out row with the nearest centre, which settles nearly all of them."""
        left = np.flatnonzero(self.by < 0)
        rows = self.rows[left]
        radius_km = self.radius_km[rows]
        farthest_km = max(self.buffer_km, SAME_KM) + radius_km.max(initial=0) + self.radius_km[some].max()
        # Without a bound, a query from afar would open much of the tree.
        chord, which = tree.query(self.xyz[rows], distance_upper_bound=_chord(farthest_km))
        within = np.isfinite(chord)
        left, rows, partner, apart_km = left[within], rows[within], some[which[within]], _along(chord[within])
        near = apart_km < max(self.buffer_km, SAME_KM)
        close = np.flatnonzero(apart_km < self.buffer_km + radius_km[within] + self.radius_km[partner])
        apart_km[close], shared = gaps(self.places, rows[close], partner[close])
        near[close] |= (apart_km[close] < self.buffer_km) | (shared >= SHARED)
        self.by[left[near]], self.km[left[near]] = partner[near], apart_km[near]

    def by_outline(self, tree: cKDTree, some: Rows) -> None:
        """Judge rows by all held-out rows whose outlines may reach so far."""
        left = np.flatnonzero(self.by < 0)
        radius_km, largest_km = self.radius_km[self.rows[left]], self.radius_km[some].max()
        if largest_km + radius_km.max(initial=0) == 0:
            return
        reach = _chord(self.buffer_km + radius_km + largest_km)
        for part, first, second in _candidates(tree, self.xyz[self.rows[left]], reach):
            one, two = self.rows[left[part[first]]], some[second]
            apart_km = _along(np.linalg.norm(self.xyz[one] - self.xyz[two], axis=1))
            maybe = np.flatnonzero(apart_km < self.buffer_km + self.radius_km[one] + self.radius_km[two])
            first, one, two = first[maybe], one[maybe], two[maybe]
            gap_km, shared = gaps(self.places, one, two)
            near = np.flatnonzero((gap_km < self.buffer_km) | (shared >= SHARED))
            near = near[np.lexsort((gap_km[near], first[near]))]
            each, begin = np.unique(first[near], return_index=True)
            here = left[part[each]]
            self.by[here], self.km[here] = two[near[begin]], gap_km[near[begin]]


def _candidates(tree: cKDTree, points: Floats, reach: Floats) -> Iterator[tuple[Rows, Rows, Rows]]:
    """Yield parts of the points, and pairs (place in the part, number in the tree) within each point's reach."""
    counts = tree.query_ball_point(points, reach, return_length=True)
    busy = np.flatnonzero(counts)
    ends = np.cumsum(counts[busy]) // _PAIRS
    for part in np.split(busy, np.flatnonzero(np.diff(ends)) + 1):
        if len(part):
            lists = tree.query_ball_point(points[part], reach[part], return_sorted=True)
            yield part, np.repeat(np.arange(len(part)), counts[part]), np.concatenate(lists).astype(np.int64)


def gaps(places: Places, one: Rows, two: Rows) -> tuple[Floats, Floats]:
    """Measure pairs of images: the distance of their outlines, and the share of the smaller one that the other shows.

    Returns:
        (m,) kilometres, 0 where they touch; (m,) in [0, 1], 1 where a place without an outline lies within the other's.
    """
    gap_km, shared = np.zeros(len(one)), np.zeros(len(one))
    for start in range(0, len(one), _PAIRS // 8):
        part = slice(start, start + _PAIRS // 8)
        gap_km[part], shared[part] = _gaps(places, one[part], two[part])
    return gap_km, shared


def _gaps(places: Places, one: Rows, two: Rows) -> tuple[Floats, Floats]:
    apart_km = _along(np.linalg.norm(unit_vectors(places.centre[one]) - unit_vectors(places.centre[two]), axis=1))
    middle = unit_vectors(places.centre[one]) + unit_vectors(places.centre[two])
    length = np.linalg.norm(middle, axis=1, keepdims=True)
    middle = np.where(length > 1e-9, middle / np.maximum(length, 1e-9), unit_vectors(places.centre[one]))
    shapes = [shapely.polygons(_plane_km(unit_vectors(places.corners[rows]), middle)) for rows in (one, two)]
    areal = [
        (places.radius_m[rows] > 0) & (shapely.area(shape) > 0) for rows, shape in zip((one, two), shapes, strict=True)
    ]
    points = ~areal[0] & ~areal[1]
    gap_km = np.where(points, apart_km, shapely.distance(*shapes))
    inside = (areal[0] != areal[1]) & (gap_km == 0)
    shared = np.where(inside | (points & (apart_km < SAME_KM)), 1.0, 0.0)
    both = np.flatnonzero(areal[0] & areal[1] & (gap_km == 0))
    a, b = (shape[both] for shape in shapes)
    shared[both] = shapely.area(shapely.intersection(a, b)) / np.minimum(shapely.area(a), shapely.area(b))
    return gap_km, shared


def _plane_km(points_m43: Floats, middle_m3: Floats) -> Floats:
    """Lay corners into the plane at a middle, their distances and directions from it kept: (m, 4, 2) kilometres."""
    axis = np.where(np.abs(middle_m3[:, 2:]) < 0.9, [[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]])
    across = np.cross(axis, middle_m3)
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    up = np.cross(middle_m3, across)
    flat = np.stack([np.einsum("mkc,mc->mk", points_m43, basis) for basis in (across, up)], axis=-1)
    sine = np.linalg.norm(flat, axis=-1)
    angle = np.arctan2(sine, np.einsum("mkc,mc->mk", points_m43, middle_m3))
    return np.asarray(flat * np.where(sine > 1e-15, angle / np.maximum(sine, 1e-15), 1)[..., None] * EARTH_RADIUS_KM)


def _along(chord: Floats) -> Floats:
    """Turn chords of the unit sphere into kilometres along it."""
    return np.asarray(2 * np.arcsin(np.minimum(chord / 2, 1)) * EARTH_RADIUS_KM)


def _chord(km: Floats | float) -> Floats:
    """Turn kilometres along the sphere into chords, a hair longer."""
    return np.asarray(2 * np.sin(np.minimum(km / EARTH_RADIUS_KM, np.pi) / 2) * (1 + 1e-9) + 1e-12)
