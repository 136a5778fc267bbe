"""Yardsticks: plain MAE as other libraries build it, to be trained by the same step as ours.

``PlainMAE`` is what one writes with timm's parts from the paper (He et al., CVPR 2022): every patch is embedded, tokens
go back into raster order before the decoder, every patch is predicted and the loss is masked. ``LightlyMAE`` puts
lightly's modules together through their public functions. Both take and return what a method of ours does, and both
use our loss, which is not what is compared.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, cast

import timm
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from terrasieve.batch import Batch, Output
from terrasieve.methods.mae import MAESettings
from terrasieve.methods.reconstruction import draw_noise, patch_errors
from terrasieve.nn.patches import patchify, take
from terrasieve.nn.position import sincos_2d
from terrasieve.train.settings import TrainSettings


def _vit(settings: TrainSettings, channels: int) -> Any:
    size, patch_px = list(settings.image.shape_px), settings.encoder.patch_px
    return timm.create_model(
        settings.encoder.name, num_classes=0, img_size=size, patch_size=patch_px, in_chans=channels
    )


class PlainMAE(nn.Module):
    """MAE of timm's patch embedding and blocks."""

    views = 1
    lr_scale = 1.0

    def __init__(self, settings: TrainSettings, channels: int) -> None:
        super().__init__()
        method = cast(MAESettings, settings.method)
        D, heads, p = method.decoder.width, method.decoder.heads, settings.encoder.patch_px
        self.vit = _vit(settings, channels)
        self.patch_px = p
        rows, columns = self.vit.patch_embed.grid_size
        N = rows * columns
        self.kept = max(round(N * (1 - method.mask)), 1)
        zero = torch.zeros(1, 1, D)
        self.embed = nn.Linear(self.vit.embed_dim, D)
        self.mask_token = nn.Parameter(zero.clone())
        self.positions: Tensor
        self.register_buffer("positions", torch.cat([zero, sincos_2d(rows, columns, D)[None]], dim=1))
        norm = cast(type[nn.Module], partial(nn.LayerNorm, eps=1e-6))
        self.blocks = nn.ModuleList(
            Block(D, heads, qkv_bias=True, norm_layer=norm) for _ in range(method.decoder.depth)
        )
        self.norm = nn.LayerNorm(D, eps=1e-6)
        self.predict = nn.Linear(D, channels * p * p)

    def forward(self, batch: Batch, generator: torch.Generator) -> Output:
        """Compute MAE's loss, all patches embedded and predicted."""
        vit = self.vit
        tokens_BND = vit.patch_embed(batch.image) + vit.pos_embed[:, 1:]
        B, N, _ = tokens_BND.shape
        noise_BN = draw_noise(batch, generator, N)
        order_BN = noise_BN.argsort(dim=1)
        cls = (vit.cls_token + vit.pos_embed[:, :1]).expand(B, -1, -1)
        x = torch.cat([cls, take(tokens_BND, order_BN[:, : self.kept])], dim=1)
        for block in vit.blocks:
            x = block(x)
        x = self.embed(vit.norm(x))
        masked = self.mask_token.to(x.dtype).expand(B, N - self.kept, -1)
        restored = take(torch.cat([x[:, 1:], masked], dim=1), order_BN.argsort(dim=1))
        x = torch.cat([x[:, :1], restored], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        predicted_BNP = self.predict(self.norm(x))[:, 1:]
        error_BN = patch_errors(predicted_BNP, patchify(batch.image, self.patch_px))
        mask_BN = torch.ones_like(noise_BN).scatter(1, order_BN[:, : self.kept], 0.0)
        return Output((error_BN * mask_BN).sum() / mask_BN.sum())

    def after_step(self, step: int) -> None:
        """Do nothing."""


class LightlyMAE(nn.Module):
    """MAE of lightly's ``MaskedVisionTransformerTIMM`` and ``MAEDecoderTIMM``.

    Raises:
        ImportError: if lightly is not installed.
    """

    views = 1
    lr_scale = 1.0

    def __init__(self, settings: TrainSettings, channels: int) -> None:
        super().__init__()
        from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM

        method = cast(MAESettings, settings.method)
        vit = _vit(settings, channels)
        self.mask, self.patch_px = method.mask, settings.encoder.patch_px
        self.encoder = MaskedVisionTransformerTIMM(vit=vit)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated in 1.6, but the one that lightly's MAE is known by
            self.decoder = MAEDecoderTIMM(
                num_patches=vit.patch_embed.num_patches,
                patch_size=self.patch_px,
                in_chans=channels,
                embed_dim=vit.embed_dim,
                decoder_embed_dim=method.decoder.width,
                decoder_depth=method.decoder.depth,
                decoder_num_heads=method.decoder.heads,
            )

    def forward(self, batch: Batch, generator: torch.Generator) -> Output:
        """Compute MAE's loss; lightly draws the mask, so ``generator`` has no part in it."""
        from lightly.models import utils

        B, T, device = len(batch), self.encoder.sequence_length, batch.image.device
        kept_ids, masked_ids = utils.random_token_mask(size=(B, T), mask_ratio=self.mask, device=device)
        seen = self.decoder.embed(self.encoder.encode(images=batch.image, idx_keep=kept_ids))
        x = utils.repeat_token(self.decoder.mask_token, (B, T)).to(seen.dtype)
        x = self.decoder.decode(utils.set_at_index(x, kept_ids, seen))
        predicted = self.decoder.predict(utils.get_at_index(x, masked_ids))
        targets = utils.get_at_index(patchify(batch.image, self.patch_px), masked_ids - 1)
        return Output(patch_errors(predicted, targets).mean())

    def after_step(self, step: int) -> None:
        """Do nothing."""
