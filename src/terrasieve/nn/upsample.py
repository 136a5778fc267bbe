"""Upsampling: from a masked autoencoder's prediction to predictions twice and four times as fine.

After ``decoder``; used by ``methods.satmae_pp``. Source: SatMAE++ (Noman et al., CVPR 2024): convolutions, of which a
transposed one doubles the side and two more refine. Their sizes, the residual and the GroupNorm are ours.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from terrasieve.nn.decoder import DecoderSettings, SelfDecoder
from terrasieve.nn.encoder import initialise
from terrasieve.nn.patches import unpatchify
from terrasieve.nn.pyramid import group_norm


class Upsample(nn.Module):
    """Double a map's side and refine it: (B, C, H, W) -> (B, D, 2 H, 2 W)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        # Kernels of 4 overlap by half, so the grid of a 2 x 2 kernel is not stamped into the image.
        self.enlarge = nn.ConvTranspose2d(channels, width, 4, stride=2, padding=1)
        self.refine = nn.Sequential(
            group_norm(width), nn.GELU(), nn.Conv2d(width, width, 3, padding=1),
            group_norm(width), nn.GELU(), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Double the side."""
        larger: Tensor = self.enlarge(x_BCHW)
        return larger + cast(Tensor, self.refine(larger))


class ScaleDecoder(nn.Module):
    """MAE's decoder, and on top of the image that it predicts one upsampling block per finer scale.

    Args:
        settings: of MAE's decoder.
        encoder_width: D of the encoder.
        grid: rows and columns of patches.
        patch_px: side of a patch.
        channels: bands, C.
        scales: 1x, 2x, 4x, ...: how many there are.
        width: channels of the upsampling blocks, a multiple of 4.
        seed: of the weights.
    """

    def __init__(
        self,
        settings: DecoderSettings,
        encoder_width: int,
        grid: tuple[int, int],
        patch_px: int,
        channels: int,
        *,
        scales: int,
        width: int,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.patch_px, self.size_px = patch_px, (grid[0] * patch_px, grid[1] * patch_px)
        self.base = SelfDecoder(settings, encoder_width, grid, channels * patch_px**2, seed)
        self.larger = nn.ModuleList(Upsample(width if n else channels, width) for n in range(scales - 1))
        self.predict = nn.ModuleList(nn.Conv2d(width, channels, 1) for _ in range(scales - 1))
        initialise(self.larger, seed, "upsample")
        initialise(self.predict, seed, "upsample/predict")

    def forward(self, tokens_BKD: Tensor, kept_ids_BK: Tensor, target_ids_BM: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Predict at every scale.

        Args:
            tokens_BKD: of the encoder, class token first.
            kept_ids_BK: the encoded patches.
            target_ids_BM: all the others.

        Returns:
            All patches at 1x in raster order, (B, N, P), and images at 2x, 4x, ..., (B, C, 2 H, 2 W), ...
        """
        shuffled_BNP = self.base(tokens_BKD, kept_ids_BK, target_ids_BM, every=True)
        ids_BN = torch.cat([kept_ids_BK, target_ids_BM], dim=1)
        patches_BNP = torch.zeros_like(shuffled_BNP).scatter(1, ids_BN[..., None].expand_as(shuffled_BNP), shuffled_BNP)
        x, images = unpatchify(patches_BNP, self.patch_px, *self.size_px), []
        for enlarge, predict in zip(self.larger, self.predict, strict=True):
            x = enlarge(x)
            images.append(predict(x))
        return patches_BNP, images
