"""Richness of a patch: the energy of its histogram of oriented gradients (HOG).

First stage of token selection: ``methods.selective_mae`` ranks patches by it. Source: Dalal & Triggs 2005 for the
histogram; SelectiveMAE (Wang et al., ICCV 2025), section 3.2.2, for its use; METHODS.md, section 3.1.

The energy is taken from the *un-normalised* histogram. A histogram that was standardised per patch has the same mean
whatever the patch shows, so ranking by it selects at random, which is what the released code does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def hog_histogram(images_BCHW: Tensor, patch_px: int, orientations: int = 9) -> Tensor:
    """Compute each patch's histogram of oriented gradients, not normalised.

    Central differences (zero at the image's border), the band with the strongest gradient at each pixel, unsigned
    orientations, hard binning weighted by magnitude, averaged over the patch's pixels.

    Args:
        images_BCHW: float images, any scale, any number of bands; H and W are multiples of ``patch_px``.
        patch_px: side of a square patch, pixels.
        orientations: bins over [0, 180) degrees.

    Returns:
        (B, N, orientations) float32, patches in row-major order, N = (H / patch_px) * (W / patch_px).

    Raises:
        ValueError: if ``patch_px`` does not divide the image.
    """
    H, W = images_BCHW.shape[-2:]
    if H % patch_px or W % patch_px:
        raise ValueError(f"patch of {patch_px} px does not divide an image of {H} x {W} px")
    across_BHW, down_BHW, magnitude_BHW = _strongest_gradient(images_BCHW.float())
    # Opposite directions are one orientation: turn every gradient into the upper half-plane.
    across_BHW = torch.where(down_BHW < 0, -across_BHW, across_BHW)
    down_BHW = down_BHW.abs()
    across_BHW = torch.where(down_BHW == 0, across_BHW.abs(), across_BHW)

    # Magnitude at or beyond each bin's lower edge; neighbours' differences are the bins. An edge is tested by the sign
    # of a cross product: no arc tangent, no scatter, the same order of summation on every device.
    beyond = [_sum_patches(magnitude_BHW, patch_px)]
    for edge in range(1, orientations):
        angle = math.pi * edge / orientations
        past = down_BHW * math.cos(angle) >= across_BHW * math.sin(angle)
        beyond.append(_sum_patches(magnitude_BHW * past, patch_px))
    beyond_BNE = torch.stack([*beyond, torch.zeros_like(beyond[0])], dim=-1)
    return (beyond_BNE[..., :-1] - beyond_BNE[..., 1:]) / patch_px**2


def hog_energy(images_BCHW: Tensor, patch_px: int) -> Tensor:
    """Compute the HOG energy of every patch: the sum of squares of its un-normalised histogram (9 orientations).

    Args:
        images_BCHW: float images; H and W are multiples of ``patch_px``.
        patch_px: side of a square patch, pixels.

    Returns:
        (B, N) float32, >= 0, patches in row-major order; 0 for a patch without any gradient.
    """
    return hog_histogram(images_BCHW, patch_px).square().sum(dim=-1)


def _strongest_gradient(images_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (across, down, magnitude), each (B, H, W), of the band with the largest gradient at each pixel."""
    across_BHW, down_BHW, square_BHW = _gradient(images_BCHW[:, 0])
    for band in range(1, images_BCHW.shape[1]):
        across, down, square = _gradient(images_BCHW[:, band])
        stronger = square > square_BHW
        across_BHW = torch.where(stronger, across, across_BHW)
        down_BHW = torch.where(stronger, down, down_BHW)
        square_BHW = torch.maximum(square, square_BHW)
    return across_BHW, down_BHW, square_BHW.sqrt()


def _gradient(image_BHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    across_BHW = torch.zeros_like(image_BHW)
    down_BHW = torch.zeros_like(image_BHW)
    torch.sub(image_BHW[:, :, 2:], image_BHW[:, :, :-2], out=across_BHW[:, :, 1:-1])
    torch.sub(image_BHW[:, 2:], image_BHW[:, :-2], out=down_BHW[:, 1:-1])
    return across_BHW, down_BHW, torch.addcmul(across_BHW.square(), down_BHW, down_BHW)


def _sum_patches(values_BHW: Tensor, patch_px: int) -> Tensor:
    """Sum (B, H, W) over patches to (B, N)."""
    B, H, W = values_BHW.shape
    rows = values_BHW.view(B, H // patch_px, patch_px, W).sum(dim=2)
    return rows.view(B, H // patch_px, W // patch_px, patch_px).sum(dim=-1).flatten(1)
