"""Decoders: predict the pixels of patches that the encoder did not see.

``SelfDecoder`` is MAE's (He et al., CVPR 2022): self-attention over visible and masked tokens. ``CrossDecoder`` is
CrossMAE's (Fu et al. 2024): queries for the patches to predict attend to the encoder's tokens and not to each other, so
that a share of the patches costs that share of the work. METHODS.md, sections 1-3.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from terrasieve import keyed
from terrasieve.errors import UserError
from terrasieve.nn.encoder import initialise
from terrasieve.nn.packed import Packing, packed_reading
from terrasieve.nn.position import sincos_2d
from terrasieve.section import Section


class DecoderSettings(Section):
    """Size of a decoder; the published one is 8 (MAE) or 12 (SelectiveMAE, CrossMAE) blocks of 512 with 16 heads."""

    depth: int = 8
    width: int = 512
    heads: int = 16


def _check(settings: DecoderSettings) -> None:
    if settings.depth < 1 or settings.heads < 1 or settings.width % settings.heads or settings.width % 4:
        raise UserError(
            f"method.decoder: depth {settings.depth}, width {settings.width}, heads {settings.heads} cannot be built: "
            "depth is at least 1, and width is a multiple of 4 and of heads."
        )


class SelfDecoder(nn.Module):
    """MAE's decoder: self-attention over the encoder's tokens and one mask token per patch to predict.

    The published code puts tokens back into raster order first; attention does not mind the order, so here the masked
    ones simply follow the visible ones, and only they reach the prediction layer.
    """

    def __init__(
        self, settings: DecoderSettings, encoder_width: int, grid: tuple[int, int], patch_values: int, seed: int = 0
    ) -> None:
        super().__init__()
        _check(settings)
        D = settings.width
        self.embed = nn.Linear(encoder_width, D)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, D))
        self.positions_ND: Tensor
        self.register_buffer("positions_ND", sincos_2d(*grid, D), persistent=False)
        norm = cast(type[nn.Module], partial(nn.LayerNorm, eps=1e-6))
        self.blocks = nn.ModuleList(
            Block(D, settings.heads, qkv_bias=True, norm_layer=norm) for _ in range(settings.depth)
        )
        self.norm = nn.LayerNorm(D, eps=1e-6)
        self.predict = nn.Linear(D, patch_values)
        initialise(self, seed, "decoder")

    def forward(self, tokens_BKD: Tensor, kept_ids_BK: Tensor, target_ids_BM: Tensor, *, every: bool = False) -> Tensor:
        """Predict patches: tokens (B, 1 + K, D) and ids -> (B, M, P), or with ``every`` the kept ones before them."""
        visible = self.embed(tokens_BKD)
        cls, patches = visible[:, :1], visible[:, 1:] + self.positions_ND[kept_ids_BK]
        masked = (self.mask_token + self.positions_ND[target_ids_BM]).to(visible.dtype)
        x = torch.cat([cls, patches, masked], dim=1)
        for block in self.blocks:
            x = block(x)
        predicted: Tensor = self.predict(self.norm(x[:, 1:] if every else x[:, -target_ids_BM.shape[1] :]))
        return predicted


class CrossBlock(nn.Module):
    """Cross-attention and MLP, pre-norm, with residuals; no attention among queries."""

    def __init__(self, settings: DecoderSettings, encoder_width: int) -> None:
        super().__init__()
        D = settings.width
        self.heads = settings.heads
        self.norm1 = nn.LayerNorm(D, eps=1e-6)
        self.query = nn.Linear(D, D)
        self.key_value = nn.Linear(encoder_width, 2 * D)
        self.project = nn.Linear(D, D)
        self.norm2 = nn.LayerNorm(D, eps=1e-6)
        self.mlp = Mlp(D, 4 * D)

    def forward(self, x_BMD: Tensor, context: Tensor, packing: Packing | None = None) -> Tensor:
        """Let queries (B, M, D) read the encoder's tokens (B, K, E), or packed ones (S, E)."""
        B, M, D = x_BMD.shape
        q = self.query(self.norm1(x_BMD)).view(B, M, self.heads, -1).transpose(1, 2)
        if packing is None:
            k, v = self.key_value(context).view(B, -1, 2, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
            read = F.scaled_dot_product_attention(q, k, v)
        else:
            k, v = self.key_value(context).view(-1, 2, self.heads, D // self.heads).unbind(1)
            read = packed_reading(q, k, v, packing)
        read = read.transpose(1, 2).reshape(B, M, D)
        x_BMD = x_BMD + self.project(read)
        x_BMD = x_BMD + self.mlp(self.norm2(x_BMD))
        return x_BMD


class CrossDecoder(nn.Module):
    """CrossMAE's decoder: keys and values straight from the encoder's tokens, at the encoder's width.

    Args:
        settings: depth, width, heads.
        encoder_width: D of the encoder.
        encoder_depth: number of encoder blocks; needed with ``mix``.
        mix: every block reads its own layer-normed linear combination of all encoder blocks' outputs, weights drawn
            from N(0, 1 / encoder_depth); otherwise all read the last layer.
        key_positions: add the grid's positions to the encoder's tokens before they are read. Published decoders rely on
            what the encoder's tokens carry of their positions, which small models take long to learn.
    """

    def __init__(
        self,
        settings: DecoderSettings,
        encoder_width: int,
        grid: tuple[int, int],
        patch_values: int,
        seed: int = 0,
        *,
        encoder_depth: int = 12,
        mix: bool = False,
        key_positions: bool = False,
    ) -> None:
        super().__init__()
        _check(settings)
        D = settings.width
        self.mask_token = nn.Parameter(torch.zeros(1, 1, D))
        self.positions_ND: Tensor
        self.register_buffer("positions_ND", sincos_2d(*grid, D), persistent=False)
        self.blocks = nn.ModuleList(CrossBlock(settings, encoder_width) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(D, eps=1e-6)
        self.predict = nn.Linear(D, patch_values)
        self.key_positions_NE: Tensor | None
        marks_NE = sincos_2d(*grid, encoder_width) if key_positions else None
        self.register_buffer("key_positions_NE", marks_NE, persistent=False)
        self.mix: nn.Parameter | None = None
        self.mix_norms = nn.ModuleList()
        if mix:
            self.mix = nn.Parameter(torch.zeros(settings.depth, encoder_depth))
            self.mix_norms.extend(nn.LayerNorm(encoder_width, eps=1e-6) for _ in range(settings.depth))
        initialise(self, seed, "decoder")
        if self.mix is not None:
            with torch.no_grad():
                self.mix.normal_(std=encoder_depth**-0.5, generator=keyed.generator(seed, "weights/decoder/mixing"))

    def forward(self, tokens: Tensor | list[Tensor], kept_ids_BK: Tensor, target_ids_BM: Tensor) -> Tensor:
        """Predict patches: encoder tokens (B, 1 + K, E), of the last or (with mix) of every block -> (B, M, P)."""
        marks_BKE: Tensor | float = 0.0
        if self.key_positions_NE is not None:
            marks_BKE = F.pad(self.key_positions_NE[kept_ids_BK], (0, 0, 1, 0))  # none for the class token
        x = self.mask_token + self.positions_ND[target_ids_BM]
        for block, context in zip(self.blocks, self._contexts(tokens), strict=True):
            x = block(x, context + marks_BKE)
        predicted: Tensor = self.predict(self.norm(x))
        return predicted

    def _contexts(self, tokens: Tensor | list[Tensor]) -> list[Tensor]:
        """Return what each block reads: the last layer, or its own mixture of all of them."""
        if isinstance(tokens, Tensor):
            return [tokens] * len(self.blocks)
        assert self.mix is not None
        mixed = torch.einsum("dl,lbke->dbke", self.mix, torch.stack(tokens))
        return [norm(context) for norm, context in zip(self.mix_norms, mixed, strict=True)]
