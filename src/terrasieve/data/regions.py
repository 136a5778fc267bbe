"""Regions: which images lie around a place, and draws of some of them, for millions of images.

Beside ``batches``, which makes batches of them. Images are sorted by cells of equal area, a region is a set of whole
cells, and a draw within it is two searches in sorted sums of weights: nothing is looped over. Rings of cells hold whole
numbers of cells and are moved so that all areas are exactly equal; that is the partition of Leopardi, "A partition of
the unit sphere into regions of equal area and small diameter", ETNA 25, 2006, without its single caps at the poles.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from terrasieve.data.places import unit_vectors
from terrasieve.imagery.sphere import EARTH_RADIUS_KM

_CELLS_ACROSS = 8  # of a region's radius: at its border whole cells are left out
_LISTED = 4096  # images of a region that are listed one by one; from larger ones rows are drawn until they suffice
_ROUNDS = 32
_ROUNDING_KM = 1e-6


def equal_area_cells(lon_deg: np.ndarray, lat_deg: np.ndarray, side_km: float) -> np.ndarray:
    """Number the cells of equal area, nearly square, that places lie in.

    Args:
        lon_deg: (n,) any range.
        lat_deg: (n,) -90 to 90.
        side_km: root of a cell's area, as nearly as whole cells allow.

    Returns:
        (n,) int64, from 0 at the north pole.
    """
    cells = max(round(4 * np.pi * (EARTH_RADIUS_KM / side_km) ** 2), 1)
    rings = max(round(np.pi * EARTH_RADIUS_KM / side_km), 1)
    north_share = (1 - np.cos(np.pi * np.arange(1, rings + 1) / rings)) / 2  # of the sphere, north of each ring's edge
    ends = np.round(cells * north_share).astype(np.int64)
    place = (1 - np.sin(np.radians(lat_deg))) / 2 * cells
    ring = np.minimum(np.searchsorted(ends, place, side="right"), rings - 1)
    begin = np.where(ring > 0, ends[ring - 1], 0)
    around = ends[ring] - begin
    column = np.floor(np.mod(lon_deg, 360) / 360 * around).astype(np.int64)
    return np.asarray(begin + np.minimum(column, around - 1))


def weights_of(lon_deg: np.ndarray, lat_deg: np.ndarray, cell_km: float, balance: float) -> np.ndarray:
    """Return how often each image counts: (images in its cell) ** -balance, images without a place the mean of that."""
    placed = np.isfinite(lon_deg) & np.isfinite(lat_deg)
    weights = np.ones(len(lon_deg))
    if balance and placed.any():
        cells = equal_area_cells(lon_deg[placed], lat_deg[placed], cell_km)
        _, inverse, counts = np.unique(cells, return_inverse=True, return_counts=True)
        weights[placed] = counts.astype(np.float64)[inverse] ** -balance
        weights[~placed] = weights[placed].mean()
    return weights


class Regions:
    """Images sorted by place.

    Attributes:
        placed: how many have a place.
    """

    def __init__(self, lon_deg: np.ndarray, lat_deg: np.ndarray, radius_km: float, weights: np.ndarray) -> None:
        """Sort the images: a second for a million.

        Args:
            lon_deg: (n,) NaN when unknown.
            lat_deg: (n,) NaN when unknown.
            radius_km: of the regions that will be asked for.
            weights: (n,) > 0, how often each image counts in a draw.
        """
        known = np.isfinite(lon_deg) & np.isfinite(lat_deg)
        rows = np.flatnonzero(known)
        cells = equal_area_cells(lon_deg[rows], lat_deg[rows], radius_km / _CELLS_ACROSS)
        by_cell = np.argsort(cells, kind="stable")
        self.placed = len(rows)
        self._degrees = np.stack([lon_deg, lat_deg], axis=1)
        self._radius = radius_km / EARTH_RADIUS_KM
        self._rows = np.concatenate([rows[by_cell], np.flatnonzero(~known)])  # those without a place stand last
        self._sums = np.concatenate([[0.0], np.cumsum(weights[self._rows])])
        self._starts = np.flatnonzero(np.diff(cells[by_cell], prepend=-1))
        self._stops = np.append(self._starts[1:], self.placed)[: len(self._starts)]
        xyz = unit_vectors(self._degrees[self._rows[: self.placed]])
        if self.placed:
            middle = np.add.reduceat(xyz, self._starts, axis=0)
            middle /= np.maximum(np.linalg.norm(middle, axis=1, keepdims=True), 1e-12)
            off = _angle(np.linalg.norm(xyz - np.repeat(middle, self._stops - self._starts, axis=0), axis=1))
            self._middle, self._reach = middle, np.maximum.reduceat(off, self._starts)
            self._tree = cKDTree(middle, leafsize=32, compact_nodes=False, balanced_tree=False)

    def everything(self) -> np.ndarray:
        """Return all images as one stretch, also those without a place: (1, 2)."""
        return np.array([[0, len(self._rows)]])

    def centre(self, draw: np.random.Generator) -> int:
        """Draw an image that has a place, by weight."""
        return int(self._rows[self._at(draw.random(1) * self._sums[self.placed])[0]])

    def around(self, row: int) -> np.ndarray:
        """Return stretches (start, stop) of sorted images: whole cells no image of which lies beyond the radius."""
        point = unit_vectors(self._degrees[row])
        chord = 2 * np.sin(min(self._radius, np.pi) / 2)
        near = np.array(self._tree.query_ball_point(point, chord), np.int64)
        away = _angle(np.linalg.norm(self._middle[near] - point, axis=1)) + self._reach[near]
        near = np.sort(near[away <= self._radius - _ROUNDING_KM / EARTH_RADIUS_KM])
        return np.stack([self._starts[near], self._stops[near]], axis=1)

    def enough_km(self, draw: np.random.Generator, size: int, places: int = 100) -> float:
        """Estimate the radius within which half of the places have that many images; infinite where they are fewer."""
        sizes = np.append(self._stops - self._starts, 0)  # the tree numbers what it does not find behind the last
        found = []
        for _ in range(places):
            point = unit_vectors(self._degrees[self.centre(draw)])
            chord, cells = self._tree.query(point, min(size, len(self._reach)))
            enough = np.flatnonzero(np.cumsum(sizes[np.atleast_1d(cells)]) >= size)
            found.append(float(np.atleast_1d(chord)[enough[0]]) if len(enough) else np.inf)
        middle = float(np.median(found))
        return float(_angle(middle) * EARTH_RADIUS_KM) if np.isfinite(middle) else np.inf

    def draw(
        self, draw: np.random.Generator, stretches_R2: np.ndarray, size: int, taken: np.ndarray
    ) -> np.ndarray | None:
        """Draw different images by weight, one after another without replacement.

        Args:
            draw: decides.
            stretches_R2: what to draw from.
            size: images wanted.
            taken: (n,) bool, images that are not wanted again.

        Returns:
            (size,) rows in the order drawn; None where there are too few.
        """
        total = int((stretches_R2[:, 1] - stretches_R2[:, 0]).sum())
        if total < size:
            return None
        if total > max(_LISTED, 4 * size):
            chosen = self._repeated(draw, stretches_R2, size, taken)
            if chosen is not None:
                return chosen
        lengths = stretches_R2[:, 1] - stretches_R2[:, 0]
        places = np.arange(total) + np.repeat(stretches_R2[:, 0] - (np.cumsum(lengths) - lengths), lengths)
        places = places[~taken[self._rows[places]]]
        if len(places) < size:
            return None
        # The least of exponential waiting times, one per image and each as fast as its weight (Efraimidis & Spirakis).
        waits = draw.standard_exponential(len(places)) / (self._sums[places + 1] - self._sums[places])
        return np.asarray(self._rows[places[np.argsort(waits, kind="stable")[:size]]])

    def _repeated(
        self, draw: np.random.Generator, stretches_R2: np.ndarray, size: int, taken: np.ndarray
    ) -> np.ndarray | None:
        """Draw with replacement and pass over what was drawn before: the same distribution, without a list."""
        before = self._sums[stretches_R2[:, 0]]
        ends = np.cumsum(self._sums[stretches_R2[:, 1]] - before)
        begins = np.concatenate([[0.0], ends[:-1]])
        chosen = np.empty(0, np.int64)
        for _ in range(_ROUNDS):
            at = draw.random(2 * size) * ends[-1]
            part = np.minimum(np.searchsorted(ends, at, side="right"), len(ends) - 1)
            places = self._at(before[part] + at - begins[part])
            rows = self._rows[np.clip(places, stretches_R2[part, 0], stretches_R2[part, 1] - 1)]
            chosen = np.concatenate([chosen, rows[~taken[rows]]])
            chosen = chosen[np.sort(np.unique(chosen, return_index=True)[1])]
            if len(chosen) >= size:
                return chosen[:size]
        return None

    def _at(self, sums: np.ndarray) -> np.ndarray:
        """Return the places in the sorted images at which running sums of weights lie."""
        return np.minimum(np.searchsorted(self._sums, sums, side="right") - 1, len(self._rows) - 1)


def _angle(chord: np.ndarray | float) -> np.ndarray:
    return np.asarray(2 * np.arcsin(np.minimum(chord / 2, 1)))
