"""Pairs: images of neighbouring ground, found through their footprints and drawn by key.

Between ``places`` and the samples of methods that look at neighbours (NeighborMAE, Tile2Vec, temporal views). Centres
are unit vectors in trees, one per class of footprint sizes, so that poles and the antimeridian are nothing special and
one large scene does not make every query large. Source: METHODS.md, section 4; the kinds of neighbours are ours.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Literal, NamedTuple, get_args

import numpy as np
from pydantic import Field
from scipy.spatial import cKDTree

from terrasieve import keyed
from terrasieve.data.places import Places, unit_vectors
from terrasieve.imagery.sphere import EARTH_RADIUS_M
from terrasieve.section import Section

Kind = Literal["same_place", "overlap", "adjacent", "near", "site", "alone"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_CHUNK = 1 << 16  # images at a time, so that what is in between stays small
_CLASS = 4.0  # sizes of one tree differ by this factor at most


class PairSettings(Section):
    """Which images are neighbours; each pair is of the first kind that fits.

    Attributes:
        kinds: those that are drawn, of same_place (IoU >= ``same_iou``, another date), overlap (IoU in ``iou``),
            adjacent (no overlap, no farther apart than ``gap`` of the anchor's side), near (centres within
            ``max_km``), and site (one folder, for images without a place). Equally often, where an anchor has them.
        same_iou: from where on two footprints are the same place.
        min_days: least time between two dates of one place; images without a date count as of another one.
        iou: least and largest overlap.
        gap: share of the anchor's side.
        max_km: of "near".
        window: images larger than this many times ``image.size_px`` are cut into windows of that size, the neighbour's
            close to the anchor's; None = crops of whole images, as published.
        reach: how far a neighbour's window may be shifted from the anchor's, a share of its side.
    """

    kinds: tuple[Literal["same_place", "overlap", "adjacent", "near", "site"], ...] = (
        "same_place", "overlap", "adjacent", "site",
    )  # fmt: skip
    same_iou: float = Field(default=0.9, gt=0, le=1)
    min_days: float = Field(default=1.0, ge=0)
    iou: tuple[float, float] = (0.05, 1.0)
    gap: float = Field(default=0.1, ge=0)
    max_km: float = Field(default=5.0, gt=0)
    window: float | None = Field(default=2.0, gt=0)
    reach: float = Field(default=0.5, ge=0)


class Pair(NamedTuple):
    """An anchor's neighbour.

    Attributes:
        row: of the neighbour; the anchor's own when it is alone.
        kind: how they are neighbours.
        boxes_24: (2, 4) float64, footprints of anchor and neighbour, left, top, right, bottom in metres (units of the
            anchor's CRS); both (0, 1, 1, 0) where no place is known.
    """

    row: int
    kind: Kind
    boxes_24: np.ndarray


class Kin(NamedTuple):
    """An anchor and K - 1 neighbours.

    Attributes:
        rows: K, the anchor's first.
        kinds: K - 1, how each is a neighbour.
        boxes_K4: float64, their footprints, as ``Pair.boxes_24``.
    """

    rows: list[int]
    kinds: list[Kind]
    boxes_K4: np.ndarray


class _Around(NamedTuple):
    """An image's neighbours by kind, rows ascending; all that came into question; (1 + k, 4) boxes, its own first."""

    of_kind: dict[Kind, np.ndarray]
    others: np.ndarray | None
    boxes: np.ndarray | None


class Neighbours:
    """The index of a manifest's images."""

    def __init__(self, places: Places, settings: PairSettings, seed: int = 0) -> None:
        """Build the trees: some seconds for 10 million images."""
        self.places, self.settings, self.seed = places, settings, seed
        placed = np.isfinite(places.radius_m) & np.isfinite(places.centre).all(axis=1)
        level = np.log(np.where(placed, np.maximum(places.radius_m, 1), 1)) // np.log(_CLASS)
        level = level.astype(np.int8)
        self._trees: list[tuple[cKDTree, np.ndarray, float]] = []
        for size in np.unique(level[placed]):
            rows = np.flatnonzero(placed & (level == size))
            tree = cKDTree(self._vectors(rows), leafsize=32, compact_nodes=False, balanced_tree=False)
            self._trees.append((tree, rows, float(places.radius_m[rows].max())))
        self._placed = placed
        unplaced = np.flatnonzero(~placed)
        self._by_site = unplaced[np.argsort(places.site[unplaced], kind="stable")]
        self._sites = places.site[self._by_site]

    def _vectors(self, rows: np.ndarray) -> np.ndarray:
        """Return the centres of images as unit vectors, (k, 3)."""
        xyz = np.empty((len(rows), 3))
        for start in range(0, len(rows), _CHUNK):
            xyz[start : start + _CHUNK] = unit_vectors(self.places.centre[rows[start : start + _CHUNK]])
        return xyz

    def of(self, row: int) -> dict[Kind, np.ndarray]:
        """Return an image's neighbours by kind, rows ascending; only kinds that are drawn and that it has."""
        found = {kind: rows[rows != row] for kind, rows in self._around(row).of_kind.items()}
        return {kind: rows for kind, rows in found.items() if len(rows)}

    def _around(self, row: int) -> _Around:
        """Find an image's neighbours; of a site, which may be of millions, as a view with the image itself."""
        if not self._placed[row]:
            start, stop = np.searchsorted(self._sites, [self.places.site[row], self.places.site[row] + 1])
            found: dict[Kind, np.ndarray] = {"site": self._by_site[start:stop]}
            return _Around({kind: rows for kind, rows in found.items() if kind in self.settings.kinds}, None, None)
        wanted, own_m = self.settings, float(self.places.radius_m[row])
        apart_m = 2 * own_m * wanted.gap if "adjacent" in wanted.kinds else 0.0
        own_3, parts = unit_vectors(self.places.centre[row]), []
        for tree, rows, largest_m in self._trees:
            reach_m = own_m + largest_m + apart_m + 1
            reach_m = max(reach_m, 1000 * wanted.max_km) if "near" in wanted.kinds else reach_m
            chord = 2 * math.sin(min(reach_m / EARTH_RADIUS_M, math.pi) / 2)
            parts.append(rows[tree.query_ball_point(own_3, chord * 1.01)])
        others = np.sort(np.concatenate(parts))
        others = others[others != row]
        boxes = self.places.boxes(np.concatenate([[row], others]), row)
        kinds = self._kinds(row, others, boxes)
        of_kind: dict[Kind, np.ndarray] = {
            kind: others[kinds == number] for number, kind in enumerate(KINDS) if kind in wanted.kinds
        }
        return _Around(of_kind, others, boxes)

    def _kinds(self, row: int, others: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """Return each candidate's kind, a number into ``KINDS``, -1 for none; ``boxes`` begin with the anchor's."""
        wanted = self.settings
        kinds = np.full(len(others), -1)
        iou, gap = iou_and_gap(boxes[0], boxes[1:])
        known = np.isfinite(iou)
        if "near" in wanted.kinds:  # the most particular kind is written last
            chord = np.linalg.norm(self._vectors(others) - unit_vectors(self.places.centre[row]), axis=1)
            apart_km = 2 * np.arcsin(np.minimum(chord / 2, 1)) * EARTH_RADIUS_M / 1000
            kinds[known & (apart_km <= wanted.max_km)] = KINDS.index("near")
        if "adjacent" in wanted.kinds:
            side = max(boxes[0, 2] - boxes[0, 0], boxes[0, 1] - boxes[0, 3])
            kinds[known & (iou == 0) & (gap <= wanted.gap * side + 1e-6 * max(side, 1))] = KINDS.index("adjacent")
        if "overlap" in wanted.kinds:
            within = (iou >= wanted.iou[0]) & (iou <= wanted.iou[1]) & (iou > 0) & (iou < wanted.same_iou)
            kinds[within] = KINDS.index("overlap")
        if "same_place" in wanted.kinds:
            days = np.abs(self.places.time[others] - self.places.time[row]) / 86_400
            other_date = ~(days < wanted.min_days)  # an unknown date counts as another one
            kinds[(iou >= wanted.same_iou) & other_date] = KINDS.index("same_place")
        return kinds

    def draw(self, row: int, epoch: int) -> Pair:
        """Draw an image's neighbour of an epoch: a kind first, then one of that kind; a function of seed and both."""
        kin = self.draw_several(row, epoch, 1)
        return Pair(kin.rows[1], kin.kinds[0], kin.boxes_K4)

    def draw_several(self, row: int, epoch: int, count: int) -> Kin:
        """Draw ``count`` neighbours as ``draw`` does, none twice unless there are too few."""
        around = self._around(row)
        draw = keyed.numpy_generator(self.seed, "pair", epoch, row)
        rows, kinds = [row], list[Kind]()
        for _ in range(count):
            taken = _taken(around.of_kind, rows) or _taken(around.of_kind, [row])
            if not taken:
                rows, kinds = [*rows, row], [*kinds, "alone"]
                continue
            kind = list(taken)[int(draw.integers(len(taken)))]
            others = around.of_kind[kind]
            chosen = int(draw.integers(len(others) - len(taken[kind])))
            for position in taken[kind]:
                chosen += chosen >= position
            rows, kinds = [*rows, int(others[chosen])], [*kinds, kind]
        return Kin(rows, kinds, _boxes(around, rows))

    def census(self, rows: np.ndarray) -> Counter[str]:
        """Count images by the kinds of neighbours that they have ("alone" = none), for a note before training."""
        counts: Counter[str] = Counter()
        for row in rows.tolist():
            counts.update(list(self.of(row)) or ["alone"])
        return counts


def _taken(of_kind: dict[Kind, np.ndarray], rows: list[int]) -> dict[Kind, list[int]]:
    """Return where ``rows`` stand among each kind's images, of the kinds that have others, too."""
    at = {kind: _positions(rows, others) for kind, others in of_kind.items()}
    return {kind: places for kind, places in at.items() if len(of_kind[kind]) > len(places)}


def _positions(rows: list[int], others: np.ndarray) -> list[int]:
    """Return where those of ``rows`` that are among ``others``, ascending, stand there, ascending."""
    at = np.searchsorted(others, rows).tolist()
    return sorted({place for row, place in zip(rows, at, strict=True) if place < len(others) and others[place] == row})


def _boxes(around: _Around, rows: list[int]) -> np.ndarray:
    """Return the boxes of drawn rows, the anchor's first: (K, 4), all (0, 1, 1, 0) where one is not known or flat."""
    nowhere = np.tile([0.0, 1.0, 1.0, 0.0], (len(rows), 1))
    if around.others is None or around.boxes is None:
        return nowhere
    at = [0 if row == rows[0] else 1 + int(np.searchsorted(around.others, row)) for row in rows]
    boxes = around.boxes[at]
    flat = (boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 1] <= boxes[:, 3]) | ~np.isfinite(boxes).all(axis=1)
    return nowhere if flat.any() else boxes


def iou_and_gap(anchor: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the overlap over the union, and the larger of the distances along the axes, of a box with others."""
    across = np.minimum(anchor[2], boxes[:, 2]) - np.maximum(anchor[0], boxes[:, 0])
    down = np.minimum(anchor[1], boxes[:, 1]) - np.maximum(anchor[3], boxes[:, 3])
    tiny = 1e-9 * max(anchor[2] - anchor[0], anchor[1] - anchor[3])  # rounding is no overlap
    shared = np.where((across > tiny) & (down > tiny), across * down, 0)
    areas = [(b[..., 2] - b[..., 0]) * (b[..., 1] - b[..., 3]) for b in (anchor, boxes)]
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = np.where(shared > 0, shared / (areas[0] + areas[1] - shared), 0)
    return np.where(np.isfinite(boxes).all(axis=1), iou, np.nan), np.maximum(np.maximum(-across, -down), 0)
