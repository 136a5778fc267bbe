"""Packed blocks: a timm ViT's blocks over the tokens of images that keep different numbers of patches.

Between ``sieve.ragged`` and ``encoder``. Norms, linears and MLPs run over all tokens at once; only attention has to
know where an image ends. METHODS.md, section 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from terrasieve.sieve.ragged import Ragged


@dataclass(frozen=True)
class Packing:
    """Tokens of B images one after another, each image's class token before its patches: S = B + T in all.

    Attributes:
        cls_B: int64, where the class tokens stand.
        patches_T: int64, where the patches stand.
        rows_S: int64, the image of each token.
        offsets: (B + 1,) int32, where each image begins, and S.
        lengths: tokens of each image on the host; empty where it does not know them.
        longest: no image has more tokens.
        blocks: FlexAttention's block mask, on CUDA where ``varlen_attn`` cannot be used.
    """

    cls_B: Tensor
    patches_T: Tensor
    rows_S: Tensor
    offsets: Tensor
    lengths: tuple[int, ...]
    longest: int
    blocks: Any = None

    @staticmethod
    def of(layout: Ragged, patches: int) -> Packing:
        """Make room for the class tokens in a layout over grids of ``patches``."""
        B, T, device = len(layout), len(layout.ids_T), layout.ids_T.device
        images = torch.arange(B, device=device)
        cls_B = layout.offsets[:-1] + images
        patches_T = torch.arange(1, T + 1, device=device) + layout.rows_T
        rows_S = torch.empty(B + T, dtype=torch.int64, device=device)
        rows_S = rows_S.index_copy(0, cls_B, images).index_copy(0, patches_T, layout.rows_T)
        offsets = (layout.offsets + torch.arange(B + 1, device=device)).int()
        lengths = tuple(length + 1 for length in layout.lengths)
        return Packing(cls_B, patches_T, rows_S, offsets, lengths, max(lengths, default=patches + 1))

    def join(self, cls_D: Tensor, tokens_TD: Tensor) -> Tensor:
        """Put the class token before each image's tokens: (S, D)."""
        joined_SD = tokens_TD.new_empty(len(self.rows_S), tokens_TD.shape[1])
        joined_SD = joined_SD.index_copy(0, self.cls_B, cls_D.to(tokens_TD.dtype).expand(len(self.cls_B), -1))
        return joined_SD.index_copy(0, self.patches_T, tokens_TD)

    def split(self, x_SD: Tensor) -> tuple[Tensor, Tensor]:
        """Take class tokens (B, D) and patches (T, D) apart."""
        return x_SD.index_select(0, self.cls_B), x_SD.index_select(0, self.patches_T)


class PackedBlock(Block):
    """timm's block, which also takes packed tokens, and leaves branches out image by image (stochastic depth)."""

    def forward(  # type: ignore[override]
        self, x: Tensor, packing: Packing | None = None, scales: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Compute the block over (B, K, D), or over (S, D) with a packing.

        Args:
            x: tokens.
            packing: where images end.
            scales: factor on the attention's and on the MLP's branch, 0 where it is left out; broadcast against ``x``.
        """
        attended = self.attn(self.norm1(x)) if packing is None else packed_attention(self.attn, self.norm1(x), packing)
        branch = self.ls1(attended)
        x = x + (branch if scales is None else branch * scales[0].to(branch.dtype))
        branch = self.ls2(self.mlp(self.norm2(x)))
        x = x + (branch if scales is None else branch * scales[1].to(branch.dtype))
        return x


def packed_attention(attention: nn.Module, x_SD: Tensor, packing: Packing) -> Tensor:
    """Do what timm's ``Attention`` does, within each image: (S, D) -> (S, D)."""
    attn: Any = attention
    q_SHd, k_SHd, v_SHd = attn.qkv(x_SD).view(len(x_SD), 3, attn.num_heads, -1).unbind(1)
    q_SHd, k_SHd = attn.q_norm(q_SHd), attn.k_norm(k_SHd)
    read_SHd = _by_image(q_SHd, k_SHd, v_SHd, packing)
    projected: Tensor = attn.proj(attn.norm(read_SHd.flatten(1)))
    return projected


def _by_image(q_SHd: Tensor, k_SHd: Tensor, v_SHd: Tensor, packing: Packing) -> Tensor:
    """Attend image by image."""
    parts = zip(*(torch.split(values, list(packing.lengths)) for values in (q_SHd, k_SHd, v_SHd)), strict=True)
    read = [F.scaled_dot_product_attention(*(p.transpose(0, 1)[None] for p in part)) for part in parts]
    return torch.cat([one[0].transpose(0, 1) for one in read])
