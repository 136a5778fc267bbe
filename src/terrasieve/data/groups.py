"""Groups: an image and its neighbours, each cropped on its own, and where the crops lie in one frame.

Between ``pairs`` and ``samples``. From an image that is much larger than a crop a window is cut first, and from its
neighbours windows close to that one: otherwise two crops of large scenes would hardly ever meet. The boxes follow the
crops exactly, pixel by pixel. Source: METHODS.md, section 4; the windows are ours.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from terrasieve.data.augment import ImageSettings, random_crop
from terrasieve.data.pairs import Kind, Neighbours, PairSettings, iou_and_gap
from terrasieve.data.places import find_places

Crop = tuple[int, int, int, int]
NOMINAL_GSD_M = 10.0  # of images without a place, so that their boxes are in something like metres


class Group(NamedTuple):
    """What is read for a sample.

    Attributes:
        rows: K, the anchor's first.
        crops: x, y, width, height in each row's pixels.
        boxes_K4: float64, left, top, right, bottom of the crops in metres of the anchor's CRS.
        kinds: K - 1, how each is a neighbour of the anchor.
        overlap: IoU of the crops, the mean over all pairs.
    """

    rows: list[int]
    crops: list[Crop]
    boxes_K4: np.ndarray
    kinds: list[Kind]
    overlap: float


class Groups:
    """Cuts groups of ``count`` images out of a manifest's images."""

    def __init__(self, neighbours: Neighbours, count: int = 2) -> None:
        self.neighbours, self.count = neighbours, count

    @staticmethod
    def of(table: pa.Table, settings: PairSettings, count: int, seed: int) -> Groups:
        """Index the kept rows of a manifest."""
        return Groups(Neighbours(find_places(table), settings, seed), count)

    def cut(
        self, draw: np.random.Generator, row: int, epoch: int, windows_N4: np.ndarray, image: ImageSettings
    ) -> Group:
        """Draw an anchor's neighbours of an epoch, and a crop of each.

        Args:
            draw: the sample's generator.
            row: the anchor.
            epoch: keys the neighbours.
            windows_N4: (n, 4) int, x, y, width, height of all images (only the sizes matter).
            image: size and augmentation.
        """
        wanted = self.neighbours.settings
        rows, kinds, footprints_K4 = self.neighbours.draw_several(row, epoch, self.count - 1)
        sizes_K2 = windows_N4[rows, 2:].astype(np.float64)
        if (footprints_K4 == [0, 1, 1, 0]).all():
            footprints_K4 = footprints_K4 * np.tile(sizes_K2[0], 2) * NOMINAL_GSD_M
        places = place_windows(draw, footprints_K4, sizes_K2, self.cut_px(image), wanted.reach)
        crops = []
        for x, y, width, height in places:
            inner = random_crop(draw, width, height, image.augment)
            crops.append((x + inner[0], y + inner[1], inner[2], inner[3]))
        boxes_K4 = ground(footprints_K4, sizes_K2, np.array(crops, np.float64))
        return Group(rows, crops, boxes_K4, kinds, mean_iou(boxes_K4))

    def cut_px(self, image: ImageSettings) -> np.ndarray:
        """Return width and height of the windows that are cut first; infinite where crops are of whole images."""
        window = self.neighbours.settings.window
        return np.full(2, np.inf) if window is None else window * np.array(image.shape_px[::-1])


def place_windows(
    draw: np.random.Generator, footprints_K4: np.ndarray, sizes_K2: np.ndarray, cut_px: np.ndarray, reach: float
) -> list[Crop]:
    """Cut a window from the first image, wherever its neighbour can be near, and windows close to it from the others.

    Args:
        draw: decides where.
        footprints_K4: left, top, right, bottom in one frame.
        sizes_K2: width and height in pixels.
        cut_px: width and height of the windows, in pixels of the first image; larger than it = all of it.
        reach: largest shift of a window against the first, a share of its side.

    Returns:
        x, y, width, height in pixels of each image.
    """
    starts_K2, sides_K2 = np.zeros_like(sizes_K2), np.zeros_like(sizes_K2)
    for axis in (0, 1):  # from the left, and from the top
        low_K = footprints_K4[:, 0] if axis == 0 else -footprints_K4[:, 1]
        high_K = footprints_K4[:, 2] if axis == 0 else -footprints_K4[:, 3]
        pixel_K = (high_K - low_K) / sizes_K2[:, axis]
        side = min(cut_px[axis], sizes_K2[0, axis]) * pixel_K[0]
        sides_K2[:, axis] = np.minimum(np.maximum(np.round(side / pixel_K), 1), sizes_K2[:, axis])
        span_K, far = sides_K2[:, axis] * pixel_K, reach * side
        first = _start(draw, low_K[0], high_K[0] - span_K[0], low_K[1] - far, high_K[1] - span_K[1] + far)
        for k in range(len(sizes_K2)):
            start = first if k == 0 else _start(draw, low_K[k], high_K[k] - span_K[k], first - far, first + far)
            most = sizes_K2[k, axis] - sides_K2[k, axis]
            starts_K2[k, axis] = np.clip(np.round((start - low_K[k]) / pixel_K[k]), 0, most)
    return [(x, y, w, h) for x, y, w, h in np.concatenate([starts_K2, sides_K2], axis=1).astype(int).tolist()]


def _start(draw: np.random.Generator, low: float, high: float, near_low: float, near_high: float) -> float:
    """Draw from what two intervals share; where that is nothing, take the first one's end that is nearer."""
    first, last = max(low, near_low), min(high, near_high)
    if first > last:
        return float(np.clip((first + last) / 2, low, max(low, high)))
    return float(draw.uniform(first, last))


def ground(footprints_K4: np.ndarray, sizes_K2: np.ndarray, crops_K4: np.ndarray) -> np.ndarray:
    """Return the boxes of crops: pixels mapped linearly into the footprints, (K, 4)."""
    left, top, right, bottom = footprints_K4.T
    x, y, width, height = crops_K4.T
    across, down = (right - left) / sizes_K2[:, 0], (top - bottom) / sizes_K2[:, 1]
    edges = (left + x * across, top - y * down, left + (x + width) * across, top - (y + height) * down)
    return np.stack(edges, axis=1)


def mean_iou(boxes_K4: np.ndarray) -> float:
    """Return the mean over all pairs of boxes of the area that they share over the area that they cover."""
    pairs = combinations(range(len(boxes_K4)), 2)
    return float(np.mean([iou_and_gap(boxes_K4[i], boxes_K4[j : j + 1])[0][0] for i, j in pairs]))


def turned(boxes_K4: np.ndarray, mirror_x: bool, mirror_y: bool, quarters: int) -> Tensor:
    """Mirror and turn the frame as ``augment.turn`` does the pixels, and move its lower left corner to the origin.

    Returns:
        (K, 4) float32.
    """
    left, top, right, bottom = boxes_K4.T
    if mirror_x:
        left, right = -right, -left
    if mirror_y:
        bottom, top = -top, -bottom
    for _ in range(quarters):  # against the clock: (x, y) -> (-y, x)
        left, top, right, bottom = -top, right, -bottom, left
    left, right, bottom, top = left - left.min(), right - left.min(), bottom - bottom.min(), top - bottom.min()
    return torch.from_numpy(np.stack([left, top, right, bottom], axis=1).astype(np.float32))
