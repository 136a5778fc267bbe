"""MAE: masked autoencoder with a self-attention decoder (He et al., CVPR 2022; METHODS.md, section 1)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from terrasieve.batch import Batch, Output
from terrasieve.methods.reconstruction import Selection, draw_noise, paint, reconstruct
from terrasieve.nn.decoder import DecoderSettings, SelfDecoder
from terrasieve.nn.encoder import Encoder
from terrasieve.nn.patches import patchify
from terrasieve.section import Section


class MAESettings(Section):
    """MAE's choices: the share of patches that is hidden and predicted, and the decoder's size."""

    name: Literal["mae"] = "mae"
    mask: float = Field(default=0.75, gt=0, lt=1)
    decoder: DecoderSettings = DecoderSettings(depth=8)


class MAE(nn.Module):
    """Encode a random quarter of the patches and predict the others."""

    views = 1
    lr_scale = 1.0

    def __init__(self, settings: MAESettings, encoder: Encoder, seed: int = 0) -> None:
        super().__init__()
        self.encoder = encoder
        N = encoder.patches
        self.kept = max(round(N * (1 - settings.mask)), 1)
        self.decoder = SelfDecoder(settings.decoder, encoder.width, encoder.grid, encoder.patch_values, seed)

    def select(self, batch: Batch, patches_BNP: Tensor, generator: torch.Generator) -> Selection:
        """Draw the patches to encode; all the others are targets."""
        order_BN = draw_noise(batch, generator, patches_BNP.shape[1]).argsort(dim=1)
        return Selection(order_BN[:, : self.kept], order_BN[:, self.kept :])

    def forward(self, batch: Batch, generator: torch.Generator, *, picture: bool = False) -> Output:
        """Compute the loss: mean squared error over masked patches of per-patch normalised pixels."""
        patches_BNP = patchify(batch.image, self.encoder.patch_px)
        selection = self.select(batch, patches_BNP, generator)
        made = reconstruct(self.encoder, self.decoder, batch, patches_BNP, selection)
        painted = paint(self.encoder, batch, made) if picture else {}
        return Output(made.error_BM.mean(), picture=painted, embeddings=made.embeddings_BD)

    def after_step(self, step: int) -> None:
        """Do nothing: MAE has no state beside its weights."""
