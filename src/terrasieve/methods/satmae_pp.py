"""SatMAE++-style multi-scale reconstruction: see an image at 1x, predict it at 1x, 2x and, if asked for, 4x.

Source: Noman et al. (CVPR 2024), "Rethinking Transformers Pre-training for Multi-Spectral Satellite Imagery". Encoder
and loss at 1x are MAE's (METHODS.md, section 1); finer scales are predicted from the image that MAE predicts, by
convolutions, and their loss is the absolute error over the whole image. All bands are one group, as in the paper's RGB
model. Ours: samples are read at the finest scale and averaged down, so that finer targets hold real detail; at every
scale, what a patch covers is normalised with its own mean and variance.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from terrasieve.batch import Batch, Output
from terrasieve.methods.reconstruction import (
    Reconstruction,
    Selection,
    draw_noise,
    moments,
    normalise_patches,
    paint,
    patch_errors,
    weigh_valid,
)
from terrasieve.nn.decoder import DecoderSettings
from terrasieve.nn.encoder import Encoder
from terrasieve.nn.patches import patchify, take, unpatchify
from terrasieve.nn.upsample import ScaleDecoder
from terrasieve.section import Section


class SatMAEPPSettings(Section):
    """SatMAE++'s choices.

    Attributes:
        mask: share of the patches that is hidden.
        scales: 2 = 1x and 2x, 3 = also 4x. ``image.size_px`` is what the encoder sees, 1x; images are read 2 or 4
            times as large, and should have that many pixels.
        finer: factor on the loss of each finer scale.
        width: channels of the upsampling blocks.
        decoder: MAE's.
    """

    name: Literal["satmae_pp"] = "satmae_pp"
    mask: float = Field(default=0.75, gt=0, lt=1)
    scales: int = Field(default=2, ge=2, le=3)
    finer: float = Field(default=1.0, ge=0)
    width: int = Field(default=32, ge=4, multiple_of=4)
    decoder: DecoderSettings = DecoderSettings(depth=8)

    @property
    def enlarged(self) -> int:
        """How many times as large as ``image.size_px`` samples are read."""
        return int(2 ** (self.scales - 1))


class SatMAEPP(nn.Module):
    """Encode a random quarter of the patches of the coarsest image, predict the image at every scale."""

    views = 1
    lr_scale = 1.0

    def __init__(self, settings: SatMAEPPSettings, encoder: Encoder, seed: int = 0) -> None:
        super().__init__()
        self.settings, self.encoder = settings, encoder
        self.kept = max(round(encoder.patches * (1 - settings.mask)), 1)
        p = encoder.patch_px
        self.decoder = ScaleDecoder(
            settings.decoder, encoder.width, encoder.grid, p, encoder.patch_values // p**2,
            scales=settings.scales, width=settings.width, seed=seed,
        )  # fmt: skip

    def select(self, batch: Batch, patches_BNP: Tensor, generator: torch.Generator) -> Selection:
        """Draw the patches to encode; all the others are targets."""
        order_BN = draw_noise(batch, generator, patches_BNP.shape[1]).argsort(dim=1)
        return Selection(order_BN[:, : self.kept], order_BN[:, self.kept :])

    def forward(self, batch: Batch, generator: torch.Generator, *, picture: bool = False) -> Output:
        """Compute the loss: squared error of masked patches at 1x, plus absolute errors of whole images beyond.

        Raises:
            ValueError: if the batch is not as many times as large as what the encoder sees.
        """
        levels = pyramid(batch, self.settings.scales)  # coarsest first
        seen, p = levels[0], self.encoder.patch_px
        if seen.image.shape[-2:] != self.decoder.size_px:
            given = tuple(batch.image.shape[-2:])
            raise ValueError(f"images of {given} px are not {self.settings.enlarged} times {self.decoder.size_px}")
        patches_BNP = patchify(seen.image, p)
        selection = self.select(batch, patches_BNP, generator)
        kept_BK, targets_BM = selection
        tokens = self.encoder(take(patches_BNP, kept_BK), kept_BK)
        predicted_BNP, larger = self.decoder(tokens, *selection)
        weight_BNP = weigh_valid(seen.valid, p, seen.image.shape[1])
        predicted_BMP = take(predicted_BNP, targets_BM)
        weight_BMP = None if weight_BNP is None else take(weight_BNP, targets_BM)
        error_BM = patch_errors(predicted_BMP, take(patches_BNP, targets_BM), weight_BMP)
        finer = list(zip(larger, levels[1:], (p * 2**n for n in range(1, len(levels))), strict=True))
        errors = [absolute_error(*scale) for scale in finer]
        metrics = {f"loss_{2**n}x": e.detach() for n, e in enumerate([error_BM.mean(), *errors])}
        made = Reconstruction(selection, predicted_BMP, error_BM, tokens[:, 1:].mean(dim=1))
        painted = {}
        if picture:
            painted = paint(self.encoder, seen, made)
            for image, level, side_px in finer:
                painted |= {f"predicted_{side_px // p}x": natural(image, level, side_px)}
                painted |= {f"true_{side_px // p}x": level.image}
        loss = error_BM.mean() + self.settings.finer * torch.stack(errors).sum()
        return Output(loss, metrics, painted, made.embeddings_BD)

    def after_step(self, step: int) -> None:
        """Do nothing: the method has no state beside its weights."""


def pyramid(batch: Batch, scales: int) -> list[Batch]:
    """Average a batch's images down by two again and again, coarsest first.

    A coarse pixel is real where all that it is the mean of are; without data it is 0.
    """
    levels = [batch]
    for _ in range(scales - 1):
        image, valid = F.avg_pool2d(levels[0].image, 2), levels[0].valid
        if valid is not None:
            valid = F.avg_pool2d(valid[:, None].float(), 2)[:, 0] == 1
            image = torch.where(valid[:, None], image, 0.0)
        levels.insert(0, replace(batch, image=image, valid=valid))
    return levels


def absolute_error(image: Tensor, level: Batch, patch_px: int) -> Tensor:
    """Return the mean absolute error of a predicted image over its real pixels: ().

    Args:
        image: (B, C, H, W), predicted, each patch normalised.
        level: the truth at this scale.
        patch_px: side of a patch at this scale.
    """
    weight_BNP = weigh_valid(level.valid, patch_px, image.shape[1])
    target_BNP = normalise_patches(patchify(level.image.float(), patch_px), weight_BNP)
    error_BNP = (patchify(image.float(), patch_px) - target_BNP).abs()
    return (error_BNP if weight_BNP is None else error_BNP * weight_BNP).mean()


def natural(image: Tensor, level: Batch, patch_px: int) -> Tensor:
    """Bring a predicted image back to each patch's true mean and variance, for a picture; as ``absolute_error``."""
    truth_BNP = patchify(level.image.float(), patch_px)
    mean, deviation = moments(truth_BNP, weigh_valid(level.valid, patch_px, image.shape[1]))
    return unpatchify(patchify(image.float(), patch_px) * deviation + mean, patch_px, *image.shape[-2:])
