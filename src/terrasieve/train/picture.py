"""The picture of a run: input, what the encoder saw and, of a masked method, what it predicted, one row per image.

Drawn from what a method returns when it is asked for a picture (``methods.reconstruction.paint``; of a contrastive
method the views, ``methods.siamese.finish``).
"""

from __future__ import annotations

from collections.abc import Sequence
from colorsys import hls_to_rgb
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from terrasieve.batch import IGNORED
from terrasieve.files import written_aside
from terrasieve.imagery.stretch import display_bands
from terrasieve.nn.patches import unpatchify

GREY = 0.5
GAP_PX = 4
Colours = Sequence[tuple[int, int, int]]


def compose(painted: dict[str, Tensor], patch_px: int, shape_px: tuple[int, int], bands: tuple[str, ...]) -> np.ndarray:
    """Lay out the picture.

    Args:
        painted: ``patches`` and ``kept``; of a masked method also ``targets`` and ``predicted``, see
            :func:`terrasieve.methods.reconstruction.paint`; of a segmentation ``mask`` and ``predicted_mask``; of
            groups of neighbours their size ``group``, the next one's pixels ``neighbour`` in this one's frame, where it
            lies (``inside``) and where the encoder sees them (``shown``), and the loss ``weight`` in [0, 1].
        patch_px: side of a patch.
        shape_px: height and width of an image.
        bands: names, to find red, green and blue.

    Returns:
        (height, width, 3) uint8: for every image a row of input, encoded patches (the others grey), and of a masked
        method predictions among them, of a segmentation the true and the predicted classes (black: not scored); of
        neighbours also what the next one shows of it, and the loss weight from dark, 0, to bright.
    """
    rgb = display_bands(bands)
    true = unpatchify(painted["patches"].float().cpu(), patch_px, *shape_px)[:, rgb]
    low, high = (torch.quantile(true.flatten(2), q, dim=2)[..., None, None] for q in (0.02, 0.98))
    span = (high - low).clamp_min(1e-6)
    kept = _per_pixel(painted["kept"].cpu(), patch_px, shape_px)
    columns = [true, torch.where(kept, true, GREY * span + low)]
    if "predicted" in painted:
        guess = unpatchify(painted["predicted"].float().cpu(), patch_px, *shape_px)[:, rgb]
        targets = _per_pixel(painted["targets"].cpu(), patch_px, shape_px)
        columns.append(torch.where(kept | targets, guess, GREY * span + low))
    if "neighbour" in painted:
        shown = painted["shown"].cpu()[:, None] > 0
        columns.append(torch.where(shown, painted["neighbour"].float().cpu()[:, rgb], GREY * span + low))
    columns = [((x - low) / span).clamp(0, 1) for x in columns]
    if "neighbour" in painted:
        columns[0] = _outlined(columns[0], painted["inside"].cpu()[:, None].float())
        columns.append(_heat(painted["weight"].float().cpu()))
    columns += [_coloured(painted[name].cpu()) for name in ("mask", "predicted_mask") if name in painted]
    return _laid_out(columns, int(painted.get("group", 1)))


def compose_views(painted: dict[str, Tensor], bands: tuple[str, ...]) -> np.ndarray:
    """Lay out the picture of a contrastive method: for every image a row of the image and the views made of it.

    Args:
        painted: ``image`` (B, C, H, W), then views of any size, in the order shown; drawn as large as the image. With
            ``other``, another date of the image's place, ``view2`` is of that one.
        bands: names, to find red, green and blue.

    Returns:
        (height, width, 3) uint8; all stretched as the image is that they are of.
    """
    rgb = display_bands(bands)
    images = {name: painted[name].float().cpu()[:, rgb] for name in ("image", "other") if name in painted}
    of_other = {"other", "view2"} if "other" in painted else set[str]()
    columns = []
    for name, view in painted.items():
        image = images["other" if name in of_other else "image"]
        low, high = (torch.quantile(image.flatten(2), q, dim=2)[..., None, None] for q in (0.02, 0.98))
        shown = F.interpolate(view.float().cpu()[:, rgb], tuple(image.shape[-2:]), mode="nearest")
        columns.append((shown - low) / (high - low).clamp_min(1e-6))
    return _laid_out(columns)


def write(picture: np.ndarray, path: Path, smallest_px: int = 720) -> None:
    """Write the picture as PNG, enlarged by a whole factor to at least ``smallest_px`` across."""
    factor = max(1, -(-smallest_px // picture.shape[1]))
    image = Image.fromarray(picture).resize(
        (picture.shape[1] * factor, picture.shape[0] * factor), Image.Resampling.NEAREST
    )
    with written_aside(path) as aside:
        image.save(aside, format="PNG", optimize=True)


def _per_pixel(flags_BN: Tensor, patch_px: int, shape_px: tuple[int, int]) -> Tensor:
    rows, columns = shape_px[0] // patch_px, shape_px[1] // patch_px
    grid = flags_BN.view(-1, 1, rows, columns)
    return grid.repeat_interleave(patch_px, dim=2).repeat_interleave(patch_px, dim=3)


def palette(classes: int) -> Colours:
    """Return a colour for each class, neighbours far apart in hue: red, green, blue, 0 to 255."""
    return [
        tuple(round(255 * part) for part in hls_to_rgb(0.58 + 0.382 * n, (0.45, 0.65, 0.3)[n % 3], 0.65))  # type: ignore[misc]
        for n in range(classes)
    ]


def _coloured(mask_BHW: Tensor) -> Tensor:
    """Paint class numbers, black where not scored: (B, 3, H, W) in [0, 1]."""
    colours = torch.tensor([*palette(IGNORED), (0, 0, 0)]) / 255
    return colours[mask_BHW.long()].permute(0, 3, 1, 2)


def _laid_out(columns: list[Tensor], group: int = 1) -> np.ndarray:
    """Put columns of images (B, 3, H, W) side by side, with gaps; groups of rows stand apart."""
    rows = list(torch.cat([_pad(x.clamp(0, 1)) for x in columns], dim=-1))
    if group > 1:
        rows = [F.pad(row, (0, 0, 0, 2 * GAP_PX * (n % group == group - 1)), value=1.0) for n, row in enumerate(rows)]
    picture = torch.cat(rows, dim=-2)
    return (picture.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)


def _outlined(images_B3HW: Tensor, inside_B1HW: Tensor) -> Tensor:
    """Draw the border of an area."""
    border = F.max_pool2d(inside_B1HW, 3, 1, 1) + F.max_pool2d(-inside_B1HW, 3, 1, 1) > 0
    return torch.where(border, torch.tensor([1.0, 0.75, 0.0])[:, None, None], images_B3HW)


def _heat(values_BHW: Tensor) -> Tensor:
    """Colour numbers in [0, 1] from black over red and yellow to white."""
    return torch.stack([(3 * values_BHW - n).clamp(0, 1) for n in range(3)], dim=1)


def _pad(images_BCHW: Tensor) -> Tensor:
    return F.pad(images_BCHW, (0, GAP_PX, 0, GAP_PX), value=1.0)
