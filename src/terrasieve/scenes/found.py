"""Found: the objects of a scene, from what a detector finds in overlapping windows; each object once.

Between ``windows`` and ``outlines``. What each window finds is kept until all are done (``store``), then merged:

1. Every window owns the part of the scene up to the middle of its overlap with the next one. A box counts if its centre
   lies in that part, or so little beyond it (a quarter of the overlap) that two windows may each have placed the centre
   on the other's side. An object no larger than the overlap lies whole in the window that owns its centre.
2. Of two boxes of one class from different windows, one of which shares more than half of its area with the other, the
   better stays: one whose window owns its centre before one that does not, then the higher score. The smaller area is
   what counts, since a window's edge may cut an object; Akyon et al., "Slicing Aided Hyper Inference and Fine-tuning
   for Small Object Detection", ICIP 2022, match so too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import shapely
import torch
from numpy.typing import NDArray

from terrasieve import keyed
from terrasieve.boxes.oriented import corners, rectangle
from terrasieve.data.augment import ImageSettings
from terrasieve.scenes.scene import Scene
from terrasieve.scenes.windows import Network, Tiling, computed, cut_windows, strip

FIELDS = 10  # of what is kept of a box: four corners in pixels of the scene, score, class (-1: no box)
BEYOND = 0.25  # of an overlap
SHARED = 0.5  # of the smaller area

Values = NDArray[np.float64]


class Objects(NamedTuple):
    """Objects of a scene, best first.

    Attributes:
        polygons: (N, 4, 2) corners in pixels of the scene.
        scores: (N,).
        classes: (N,) int64.
    """

    polygons: Values
    scores: Values
    classes: NDArray[np.int64]


def find(
    scene: Scene,
    network: Network,
    tiling: Tiling,
    image: ImageSettings,
    most: int,
    *,
    first: int = 0,
    batch_size: int = 8,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_windows: Callable[[int, int], None] | None = None,
) -> Iterator[Values]:
    """Look for objects in one row of windows after another; windows without a real pixel are not looked at.

    Args:
        scene: what to read.
        network: a detector's ``predict``: (B, most, F) of box, score and class, boxes in pixels of its images.
        tiling: in pixels (``cell_px`` 1).
        image: size that the network sees, and each band's mean and standard deviation.
        most: objects of a window.
        first: rows of windows before it are known.
        batch_size: windows at a time.
        seed: of what is drawn in prediction, as random dropping does.
        device: where the network is.
        on_windows: called with windows done and their total.

    Yields:
        (1, windows across, most x FIELDS).

    Raises:
        UnreadableImage: if the scene cannot be decoded.
    """
    down, across = tiling.down, tiling.across
    scale = torch.tensor([tiling.side[1] / image.shape_px[1], tiling.side[0] / image.shape_px[0]])
    for number, top in enumerate(down[first:], first):
        array, valid = strip(scene, top, tiling)
        row = np.full((len(across), most, FIELDS), -1.0)
        there = [n for n, left in enumerate(across) if valid[:, left : left + tiling.side[1]].any()]
        for begin in range(0, len(there), batch_size):
            some = there[begin : begin + batch_size]
            batch = cut_windows(array, valid, [across[n] for n in some], tiling, image)
            draw = keyed.generator(seed, "scene", number, begin, device=device)
            for n, found_KF in zip(some, computed(network, batch, image, draw, device).cpu(), strict=True):
                found_KF = found_KF[(found_KF[:, -1] >= 0) & found_KF.isfinite().all(1)].double()
                boxes = found_KF[:, :-2]
                polygons = (corners(boxes) if boxes.shape[1] == 5 else rectangle(boxes)) * scale
                placed = polygons + torch.tensor([across[n], top])
                row[n, : len(placed)] = torch.cat([placed.flatten(1), found_KF[:, -2:]], 1).numpy()
            if on_windows:
                on_windows(number * len(across) + some[-1] + 1, tiling.windows)
        if on_windows:
            on_windows((number + 1) * len(across), tiling.windows)
        yield row.reshape(1, len(across), most * FIELDS)


def merged(rows: Iterator[Values], tiling: Tiling, least_score: float = 0.0) -> Objects:
    """Merge what windows found.

    Args:
        rows: of all windows, from :func:`find`.
        tiling: that they were found with.
        least_score: boxes with less are left out.
    """
    x, y = (_own(starts, side) for starts, side in zip((tiling.across, tiling.down), tiling.side[::-1], strict=True))
    kept = [np.zeros((0, FIELDS + 2))]
    for number, row in enumerate(rows):
        found = row.reshape(row.shape[1], -1, FIELDS)
        there = (found[..., -1] >= 0) & (found[..., -2] >= least_score)
        (window, _), boxes = np.nonzero(there), found[there]
        centre = boxes[:, :8].reshape(-1, 4, 2).mean(1)
        far = np.maximum(x.outside(window, centre[:, 0]), y.outside(np.full(len(window), number), centre[:, 1]))
        about = np.stack([far <= 0, number * row.shape[1] + window], 1)
        kept.append(np.concatenate([boxes, about], 1)[far < BEYOND])
    every = np.concatenate(kept)
    every = every[np.lexsort((-every[:, 8], -every[:, 10]))]
    every = every[_once(every)]
    every = every[np.argsort(-every[:, 8], kind="stable")]
    return Objects(every[:, :8].reshape(-1, 4, 2), every[:, 8], every[:, 9].astype(np.int64))


class _Own(NamedTuple):
    """What windows own along an axis: edges of n windows, (n + 1,), and at each edge the overlap in pixels."""

    edges: Values
    overlaps: Values

    def outside(self, window: NDArray[np.int64], place: Values) -> Values:
        """Return how far places lie outside what their windows own, in overlaps; not above 0 inside."""
        low = (self.edges[window] - place) / self.overlaps[window]
        high = (place - self.edges[window + 1]) / self.overlaps[window + 1]
        return np.maximum(low, high)


def _own(starts: Sequence[int], side: int) -> _Own:
    first = np.array(starts, np.float64)
    overlaps = first[:-1] + side - first[1:]
    edges = np.concatenate([[-np.inf], first[1:] + overlaps / 2, [np.inf]])
    return _Own(edges, np.concatenate([[1.0], np.maximum(overlaps, 1e-9), [1.0]]))


def _once(every: Values) -> NDArray[np.bool_]:
    """Tell which boxes stay, of boxes from the best to the worst: corners, score, class, own, window."""
    shapes = shapely.polygons(every[:, :8].reshape(-1, 4, 2))
    areas = shapely.area(shapes)
    one, other = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    pairs = (one < other) & (every[one, 9] == every[other, 9]) & (every[one, 11] != every[other, 11])
    one, other = one[pairs], other[pairs]
    common = shapely.area(shapely.intersection(shapes[one], shapes[other]))
    double = common > SHARED * np.minimum(areas[one], areas[other])
    order = np.lexsort((other[double], one[double]))
    stays = np.ones(len(every), np.bool_)
    for better, worse in zip(one[double][order].tolist(), other[double][order].tolist(), strict=True):
        if stays[better]:
            stays[worse] = False
    return stays
