"""Reconstruction: what the masked methods share, from chosen ids to the loss and to a picture.

Source: MAE (He et al., CVPR 2022), per-patch normalised pixels; METHODS.md, section 1.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from terrasieve.batch import Batch
from terrasieve.nn.encoder import Encoder
from terrasieve.nn.patches import patchify, take


class Selection(NamedTuple):
    """Patch ids, disjoint within a row.

    Attributes:
        kept_BK: encoded patches.
        targets_BM: patches to predict.
    """

    kept_BK: Tensor
    targets_BM: Tensor


class Reconstruction(NamedTuple):
    """What a masked method computed for a batch.

    Attributes:
        selection: which patches were encoded and predicted.
        predicted_BMP: predictions of normalised pixels at the targets.
        error_BM: mean squared error of each target patch over its real pixels.
        embeddings_BD: mean of the encoded patches, after the final norm.
    """

    selection: Selection
    predicted_BMP: Tensor
    error_BM: Tensor
    embeddings_BD: Tensor


def draw_noise(batch: Batch, generator: torch.Generator, patches: int) -> Tensor:
    """Draw uniform noise (B, N) for this micro-batch out of the noise of the whole global batch.

    Every process and every micro-batch of a step draws the same numbers and takes its own rows, so masks do not depend
    on how the batch was divided.
    """
    B = len(batch)
    start, total = batch.rows or (0, B)
    noise = torch.rand(total, patches, generator=generator, device=batch.image.device)
    return noise[start : start + B]


def normalise_patches(patches_BMP: Tensor, weight_BMP: Tensor | None = None) -> Tensor:
    """Scale every patch to mean 0 and variance 1 (unbiased variance + 1e-6), over its real pixels."""
    mean, deviation = moments(patches_BMP, weight_BMP)
    return (patches_BMP - mean) / deviation


def moments(patches_BMP: Tensor, weight_BMP: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return what every patch is normalised with, mean and standard deviation (B, M, 1) of its real pixels."""
    if weight_BMP is None:
        variance, mean = torch.var_mean(patches_BMP, dim=-1, keepdim=True, correction=1)
    else:
        variance, mean = weighted_var_mean(patches_BMP, weight_BMP)
    return mean, (variance + 1e-6).sqrt()


def weighted_var_mean(patches_BMP: Tensor, weight_BMP: Tensor) -> tuple[Tensor, Tensor]:
    """Return variance (unbiased) and mean (B, M, 1) of each patch's real pixels, those of weight 1, not 0."""
    count = weight_BMP.sum(dim=-1, keepdim=True)
    mean = (patches_BMP * weight_BMP).sum(dim=-1, keepdim=True) / count.clamp_min(1)
    squares = ((patches_BMP - mean).square() * weight_BMP).sum(dim=-1, keepdim=True)
    return squares / (count - 1).clamp_min(1), mean


def patch_errors(predicted_BMP: Tensor, patches_BMP: Tensor, weight_BMP: Tensor | None = None) -> Tensor:
    """Return the mean squared error of each patch against its normalised pixels: (B, M) float32.

    Args:
        predicted_BMP: predictions, any float type.
        patches_BMP: pixels of the same patches.
        weight_BMP: 1 for real pixels, 0 where there is no data, which then adds nothing; None when all are real.
    """
    square = (predicted_BMP.float() - normalise_patches(patches_BMP.float(), weight_BMP)).square()
    return (square if weight_BMP is None else square * weight_BMP).mean(dim=-1)


def reconstruct(
    encoder: Encoder, decoder: nn.Module, batch: Batch, patches_BNP: Tensor, selection: Selection, mix: bool = False
) -> Reconstruction:
    """Encode the kept patches, predict the targets and measure the error."""
    tokens = encoder(take(patches_BNP, selection.kept_BK), selection.kept_BK, every_block=mix)
    predicted_BMP = cast(Tensor, decoder(tokens, *selection))
    targets_BMP = take(patches_BNP, selection.targets_BM)
    weight_BNP = weigh_valid(batch.valid, encoder.patch_px, batch.image.shape[1])
    weight_BMP = None if weight_BNP is None else take(weight_BNP, selection.targets_BM)
    last: Tensor = tokens[-1] if mix else tokens
    errors = patch_errors(predicted_BMP, targets_BMP, weight_BMP)
    return Reconstruction(selection, predicted_BMP, errors, last[:, 1:].mean(dim=1))


def weigh_valid(valid_BHW: Tensor | None, patch_px: int, bands: int) -> Tensor | None:
    """Return 1 for every real value of every patch, 0 for the others, (B, N, P), or None when every pixel is real."""
    if valid_BHW is None:
        return None
    return patchify(valid_BHW[:, None].float(), patch_px).repeat(1, 1, bands)


def share_valid(batch: Batch, patch_px: int) -> Tensor | None:
    """Return each patch's share of real pixels (B, N), or None when every pixel is real."""
    if batch.valid is None:
        return None
    return patchify(batch.valid[:, None].float(), patch_px).mean(dim=-1)


def paint(encoder: Encoder, batch: Batch, made: Reconstruction) -> dict[str, Tensor]:
    """Lay a reconstruction out as patches for a picture.

    Returns:
        ``patches`` (B, N, P) normalised input, ``kept`` and ``targets`` (B, N) bool, ``predicted`` (B, N, P): the
        input with the predictions in the targets' places, brought back to each patch's mean and variance.
    """
    patches_BNP = patchify(batch.image, encoder.patch_px)
    kept_BK, targets_BM = made.selection
    truth = take(patches_BNP, targets_BM)
    mean, deviation = moments(truth)
    pixels = made.predicted_BMP.float() * deviation + mean
    predicted = patches_BNP.scatter(1, targets_BM[..., None].expand_as(pixels), pixels)
    empty = torch.zeros(patches_BNP.shape[:2], dtype=torch.bool, device=patches_BNP.device)
    return {
        "patches": patches_BNP,
        "kept": empty.scatter(1, kept_BK, True),
        "targets": empty.scatter(1, targets_BM, True),
        "predicted": predicted,
    }
