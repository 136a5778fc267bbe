"""Visibility: what a neighbouring image gives away of this one, pixel by pixel, and how much each pixel counts.

Used by ``neighbor_mae`` for its loss. Source: NeighborMAE (Zeng et al., CVPR 2026), METHODS.md, section 4.

Legend: B groups, K images of a group, C bands, H x W pixels, p pixels of a patch's side; boxes as in ``nn.frames``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

from terrasieve.methods.reconstruction import weighted_var_mean
from terrasieve.nn.patches import patchify, unpatchify

_BLUR_PX = 9


def cross_project(images: Tensor, visible: Tensor, boxes: Tensor, shift: int = 1) -> tuple[Tensor, Tensor]:
    """Warp every image's neighbour into its frame.

    Args:
        images: (B, K, C, H, W) float.
        visible: (B, K, H, W), 1 on pixels that the encoder sees.
        boxes: (B, K, 4) in one frame.
        shift: the neighbour of image k is image (k + shift) mod K; with K = 2 the other one.

    Returns:
        The neighbour's pixels in this image's frame, bilinear, 0 outside, (B, K, C, H, W); and whether the neighbour
        shows them to the encoder, nearest, (B, K, H, W) in the type of ``visible``.
    """
    B, K, _, H, W = images.shape
    other = boxes.roll(-shift, 1)
    across = (torch.arange(W, device=boxes.device) + 0.5) / W
    down = (torch.arange(H, device=boxes.device) + 0.5) / H
    x = boxes[..., 0, None] + (boxes[..., 2] - boxes[..., 0])[..., None] * across
    y = boxes[..., 1, None] + (boxes[..., 3] - boxes[..., 1])[..., None] * down
    x = (x - other[..., 0, None]) / (other[..., 2] - other[..., 0])[..., None] * 2 - 1
    y = (y - other[..., 1, None]) / (other[..., 3] - other[..., 1])[..., None] * 2 - 1
    grid = torch.stack([x[..., None, :].expand(B, K, H, W), y[..., :, None].expand(B, K, H, W)], dim=-1).flatten(0, 1)
    pixels = grid_sample(images.roll(-shift, 1).flatten(0, 1), grid.to(images.dtype), align_corners=False)
    mask = visible.roll(-shift, 1).flatten(0, 1)[:, None].to(grid.dtype)
    shown = grid_sample(mask, grid, mode="nearest", align_corners=False)
    return pixels.reshape(images.shape), shown.reshape(visible.shape).to(visible.dtype)


def loss_weight(
    prediction: Tensor,
    images: Tensor,
    visible: Tensor,
    boxes: Tensor,
    patch_px: int,
    valid: Tensor | None = None,
    normal: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """Return how much each pixel's error counts: little where the neighbour shows what is there.

    w = clamp(mean_c (warped - target)^2 / mean_c (prediction - target)^2, 0, 1), 1 where no neighbour shows the pixel,
    the least over the neighbours; then a mean over 9 x 9 pixels of the image, then 0 on the image's own visible
    pixels. Warped and target are normalised by the patch's mean and deviation; the weight carries no gradient.

    Args:
        prediction: (B, K, C, H, W), of normalised pixels.
        images: (B, K, C, H, W).
        visible: (B, K, H, W), 1 on pixels that the encoder sees.
        boxes: (B, K, 4) in one frame.
        patch_px: side of a patch.
        valid: (B, K, H, W), 0 where there is no data, which shows nothing and does not count; None = all real.
        normal: what ``normalised`` makes of the images, where that is known already.

    Returns:
        (B, K, H, W) in [0, 1], the type of ``images``.
    """
    with torch.no_grad():
        target, mean, deviation = normalised(images, patch_px, valid) if normal is None else normal
        error = (prediction - target).square().mean(2).clamp(min=torch.finfo(images.dtype).tiny)
        shown_by = visible if valid is None else visible * valid.to(visible.dtype)
        weight = torch.ones_like(error)
        for shift in range(1, images.shape[1]):
            warped, shown = cross_project(images, shown_by, boxes, shift)
            given_away = ((warped - mean) / deviation - target).square().mean(2)
            weight = torch.where(shown > 0, torch.minimum(weight, (given_away / error).clamp(0, 1)), weight)
        blurred = _blur(_blur(weight).transpose(-1, -2)).transpose(-1, -2)  # the mean over a square, side by side
        counts = (1 - visible.to(blurred.dtype)) * (1 if valid is None else valid.to(blurred.dtype))
        return blurred * counts


def _blur(values: Tensor) -> Tensor:
    """Average over 9 columns, fewer at the edges."""
    side, pad = (1, _BLUR_PX), (0, _BLUR_PX // 2)
    return avg_pool2d(values, side, stride=1, padding=pad, count_include_pad=False)


def novelty(images: Tensor, visible: Tensor, boxes: Tensor, patch_px: int, valid: Tensor | None = None) -> Tensor:
    """Return the loss weight that can be known before anything is predicted, (B, K, H, W).

    It is ``loss_weight`` as if the prediction were off by 1, the deviation of a patch, everywhere: the warped
    difference alone. Arguments as there.
    """
    normal = normalised(images, patch_px, valid)
    return loss_weight(normal[0] + 1, images, visible, boxes, patch_px, valid, normal)


def weighted_loss(prediction: Tensor, images: Tensor, visible: Tensor, boxes: Tensor, patch_px: int) -> Tensor:
    """Return NeighborMAE's loss, (): weighted squared error, summed over masked pixels, over their number.

    Arguments as for :func:`loss_weight`.
    """
    weight = loss_weight(prediction, images, visible, boxes, patch_px)
    error = (prediction - normalised(images, patch_px)[0]).square().mean(2)
    return (weight * error).sum() / (1 - visible.to(error.dtype)).sum().clamp(min=1)


def normalised(images: Tensor, patch_px: int, valid: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return pixels normalised patch by patch, and each pixel's patch's mean and deviation, all (B, K, C, H, W).

    Statistics are those of the real pixels, where ``valid`` (B, K, H, W) is not 0.
    """
    H, W = images.shape[-2:]
    patches = patchify(images.flatten(0, 1), patch_px)
    if valid is None:
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    else:
        real = patchify(valid.flatten(0, 1)[:, None].expand(-1, images.shape[2], -1, -1).to(patches.dtype), patch_px)
        variance, mean = weighted_var_mean(patches, real)
    deviation = (variance + 1e-6).sqrt()
    parts = ((patches - mean) / deviation, mean.expand_as(patches), deviation.expand_as(patches))
    one, two, three = (unpatchify(part, patch_px, H, W).reshape(images.shape) for part in parts)
    return one, two, three
