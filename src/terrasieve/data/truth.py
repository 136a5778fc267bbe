"""Truth: what is known of each image beside its pixels, and how it follows the pixels through crops, flips and turns.

Between ``images`` and ``samples``; row ``i`` of everything here belongs to row ``i`` of the ``Images`` beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from terrasieve.data.boxes import Boxes, Found
    from terrasieve.data.masks import Masks


@dataclass(frozen=True)
class Truth:
    """Labels, masks, redundancy and objects of images, each None where there is none.

    Attributes:
        labels: (n,) int64 class numbers, or (n, C) float32 multi-hot.
        masks: class number of every pixel, 255 where it is not scored.
        redundancy: (n, rows, columns) float32, of every patch of the whole image.
        boxes: objects of every image.
    """

    labels: Tensor | None = None
    masks: Masks | None = None
    redundancy: np.ndarray | None = None
    boxes: Boxes | None = None

    def read_mask(self, row: int, crop: tuple[int, int, int, int] | None, height: int, width: int) -> Tensor | None:
        """Read a row's mask, or a crop (x, y, width, height) of it, at the nearest pixels: (height, width) uint8."""
        if self.masks is None:
            return None
        mask_HW = torch.from_numpy(self.masks.read(row, crop))
        if tuple(mask_HW.shape) == (height, width):
            return mask_HW
        return F.interpolate(mask_HW[None, None], size=(height, width), mode="nearest-exact")[0, 0]

    def patch_redundancy(self, row: int) -> Tensor | None:
        """Return the redundancy of a row's patches: (rows, columns) float32."""
        if self.redundancy is None:
            return None
        return torch.from_numpy(np.array(self.redundancy[row], dtype=np.float32))

    def read_boxes(self, row: int, crop: tuple[int, int, int, int] | None, height: int, width: int) -> Found | None:
        """Return a row's objects, or those in a crop (x, y, width, height), in pixels of (height, width)."""
        return None if self.boxes is None else self.boxes.read(row, crop, height, width)

    def take(self, rows: np.ndarray) -> Truth:
        """Return some of the rows, in the order given: (k,) int64."""
        return Truth(
            labels=None if self.labels is None else self.labels[torch.from_numpy(rows)],
            masks=None if self.masks is None else self.masks.take(rows),
            redundancy=None if self.redundancy is None else self.redundancy[rows],
            boxes=None if self.boxes is None else self.boxes.take(rows),
        )
