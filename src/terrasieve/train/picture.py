"""The reconstruction picture: input, what the encoder saw, what was predicted, one row per image.

Drawn from what a method returns when it is asked for a picture (``methods.reconstruction.paint``).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from terrasieve.nn.patches import unpatchify
from terrasieve.train.checkpoint import written_aside

GREY = 0.5
GAP_PX = 4


def compose(painted: dict[str, Tensor], patch_px: int, shape_px: tuple[int, int], bands: tuple[str, ...]) -> np.ndarray:
    """Lay out the picture.

    Args:
        painted: ``patches``, ``kept``, ``targets``, ``predicted`` of :func:`terrasieve.methods.reconstruction.paint`.
        patch_px: side of a patch.
        shape_px: height and width of an image.
        bands: names, to find red, green and blue.

    Returns:
        (height, width, 3) uint8: for every image a row of input, encoded patches, and predictions among them; patches
        that are neither encoded nor predicted are grey.
    """
    rgb = display_bands(bands)
    true = unpatchify(painted["patches"].float().cpu(), patch_px, *shape_px)[:, rgb]
    guess = unpatchify(painted["predicted"].float().cpu(), patch_px, *shape_px)[:, rgb]
    low, high = (torch.quantile(true.flatten(2), q, dim=2)[..., None, None] for q in (0.02, 0.98))
    span = (high - low).clamp_min(1e-6)
    true, guess = (((x - low) / span).clamp(0, 1) for x in (true, guess))
    kept, targets = (_per_pixel(painted[name].cpu(), patch_px, shape_px) for name in ("kept", "targets"))
    seen = torch.where(kept, true, GREY)
    predicted = torch.where(kept | targets, guess, GREY)
    rows = torch.cat([_pad(x) for x in (true, seen, predicted)], dim=-1)
    picture = torch.cat(list(rows), dim=-2)
    return (picture.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)


def write(picture: np.ndarray, path: Path, smallest_px: int = 720) -> None:
    """Write the picture as PNG, enlarged by a whole factor to at least ``smallest_px`` across."""
    factor = max(1, -(-smallest_px // picture.shape[1]))
    image = Image.fromarray(picture).resize(
        (picture.shape[1] * factor, picture.shape[0] * factor), Image.Resampling.NEAREST
    )
    with written_aside(path) as aside:
        image.save(aside, format="PNG", optimize=True)


def display_bands(bands: tuple[str, ...]) -> list[int]:
    """Return which bands to show as red, green and blue: those of that name, else the first three or the first."""
    if {"red", "green", "blue"} <= set(bands):
        return [bands.index(name) for name in ("red", "green", "blue")]
    return [0, 1, 2] if len(bands) >= 3 else [0, 0, 0]


def _per_pixel(flags_BN: Tensor, patch_px: int, shape_px: tuple[int, int]) -> Tensor:
    rows, columns = shape_px[0] // patch_px, shape_px[1] // patch_px
    grid = flags_BN.view(-1, 1, rows, columns)
    return grid.repeat_interleave(patch_px, dim=2).repeat_interleave(patch_px, dim=3)


def _pad(images_BCHW: Tensor) -> Tensor:
    return F.pad(images_BCHW, (0, GAP_PX, 0, GAP_PX), value=1.0)
