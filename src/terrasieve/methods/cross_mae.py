"""CrossMAE-style partial reconstruction: a cross-attention decoder predicts a random share of the masked patches.

Source: Fu et al. 2024, "Rethinking Patch Dependence for Masked Autoencoders"; METHODS.md, section 2.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from terrasieve.batch import Batch, Output
from terrasieve.methods.reconstruction import Selection, draw_noise, paint, reconstruct
from terrasieve.nn.decoder import CrossDecoder, DecoderSettings
from terrasieve.nn.encoder import Encoder
from terrasieve.nn.patches import patchify
from terrasieve.section import Section


class CrossMAESettings(Section):
    """CrossMAE's choices.

    Attributes:
        mask: share of the patches hidden from the encoder.
        predict: share of all patches that is predicted, at most ``mask``.
        mix: each decoder block reads its own mixture of all encoder blocks.
        key_positions: mark the encoder's tokens with their positions for the decoder (ours; helps small models).
    """

    name: Literal["cross_mae"] = "cross_mae"
    mask: float = Field(default=0.75, gt=0, lt=1)
    predict: float = Field(default=0.25, gt=0, lt=1)
    mix: bool = False
    key_positions: bool = False
    decoder: DecoderSettings = DecoderSettings(depth=12)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.predict > self.mask:
            raise ValueError(
                f"predict {self.predict} is more than the masked share {self.mask}; predict at most what is masked"
            )
        return self


class CrossMAE(nn.Module):
    """Encode a random quarter of the patches and predict a random share of the others by cross-attention."""

    views = 1

    def __init__(self, settings: CrossMAESettings, encoder: Encoder, seed: int = 0) -> None:
        super().__init__()
        self.encoder = encoder
        N = encoder.patches
        self.kept = max(round(N * (1 - settings.mask)), 1)
        self.predicted = min(max(round(N * settings.predict), 1), N - self.kept)
        self.lr_scale = 1.0
        self.mix = settings.mix
        self.decoder = CrossDecoder(
            settings.decoder,
            encoder.width,
            encoder.grid,
            encoder.patch_values,
            seed,
            encoder_depth=len(encoder.vit.blocks),
            mix=settings.mix,
            key_positions=settings.key_positions,
        )

    def select(self, batch: Batch, patches_BNP: Tensor, generator: torch.Generator) -> Selection:
        """Draw the patches to encode and those to predict."""
        order_BN = draw_noise(batch, generator, patches_BNP.shape[1]).argsort(dim=1)
        return Selection(order_BN[:, : self.kept], order_BN[:, self.kept : self.kept + self.predicted])

    def forward(self, batch: Batch, generator: torch.Generator, *, picture: bool = False) -> Output:
        """Compute the loss: mean squared error over predicted patches of per-patch normalised pixels."""
        patches_BNP = patchify(batch.image, self.encoder.patch_px)
        selection = self.select(batch, patches_BNP, generator)
        made = reconstruct(self.encoder, self.decoder, batch, patches_BNP, selection, self.mix)
        painted = paint(self.encoder, batch, made) if picture else {}
        return Output(made.error_BM.mean(), picture=painted, embeddings=made.embeddings_BD)

    def after_step(self, step: int) -> None:
        """Do nothing: the method has no state beside its weights."""
