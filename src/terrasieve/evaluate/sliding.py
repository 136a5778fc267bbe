"""Sliding windows: a segmenter scored on images at their full size, which it sees window by window.

Beside ``finetune``, which resamples whole images to the size that was trained on. Windows overlap, and a pixel's class
is that of the window in which it stands farthest from the edge (``maps``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from terrasieve.batch import IGNORED
from terrasieve.data.augment import ImageSettings
from terrasieve.data.images import Images
from terrasieve.data.masks import Masks
from terrasieve.evaluate import dense, maps


def confusions(
    predict: maps.Predict,
    images: Images,
    masks: Masks,
    rows: Sequence[int],
    settings: ImageSettings,
    *,
    overlap: float,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_images: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Count the pixels of each true and predicted class of images at their full size.

    Args:
        predict: of the method, in evaluation mode.
        images, masks: row by row.
        rows: which of them.
        settings: size of the windows in pixels, mean and std.
        overlap: of the windows, share of a side.
        seed: of what is drawn in prediction.
        device: where ``predict`` computes.
        on_images: called with images done and their total.

    Returns:
        (rows, C, C) int64, true classes in rows; pixels without data are not scored.
    """
    classes = len(masks.classes)
    found = []
    for done, row in enumerate(rows, start=1):
        width, height = (int(v) for v in images.windows[row, 2:])
        parts = maps.predicted_parts(predict, images, row, settings, overlap=overlap, seed=seed, device=device)
        said_HW = torch.from_numpy(maps.whole(parts, height, width))
        truth_HW = torch.from_numpy(masks.read(row))
        truth_HW = torch.where(said_HW < classes, truth_HW, IGNORED)
        found.append(dense.confusion(said_HW[None].clamp(max=classes - 1), truth_HW[None], classes)[0])
        if on_images:
            on_images(done, len(rows))
    return torch.stack(found)
