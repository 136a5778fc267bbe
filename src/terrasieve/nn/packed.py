"""Packed blocks: a timm ViT's blocks over the tokens of images that keep different numbers of patches.

Between ``sieve.ragged`` and ``encoder``. Norms, linears and MLPs run over all tokens at once; only attention has to
know where an image ends. On a CPU it goes image by image, on CUDA through the flash kernel for ragged batches in half
precision, else through FlexAttention. METHODS.md, section 8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.attention.varlen import varlen_attn

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
        longest: no image can have more tokens; the same in every step, so that compiled blocks stay as they are.
        mask: FlexAttention's, on CUDA where ``varlen_attn`` cannot be used; built once for all blocks.
    """

    cls_B: Tensor
    patches_T: Tensor
    rows_S: Tensor
    offsets: Tensor
    lengths: tuple[int, ...]
    longest: int
    mask: BlockMask | None = None

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
        mask = _block_mask(rows_S) if device.type == "cuda" and not _has_varlen(device) else None
        return Packing(cls_B, patches_T, rows_S, offsets, lengths, patches + 1, mask)

    def divided(self, sizes_R: Tensor, longest: int) -> Packing:
        """Return the same tokens in more runs, which take the place of images.

        Args:
            sizes_R: tokens of each run, int64; 0 where it is empty.
            longest: no run can have more.
        """
        device, S = sizes_R.device, len(self.rows_S)
        rows_S = torch.arange(len(sizes_R), device=device).repeat_interleave(sizes_R, output_size=S)
        offsets = F.pad(sizes_R.cumsum(0), (1, 0)).int()
        lengths = tuple(filter(None, sizes_R.tolist())) if device.type == "cpu" else ()
        mask = None if self.mask is None else _block_mask(rows_S)
        return replace(self, rows_S=rows_S, offsets=offsets, lengths=lengths, longest=longest, mask=mask)

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


def is_plain(model: nn.Module) -> bool:
    """Tell whether a model is a ViT with positions, one class token and timm's plain blocks, which can be packed."""
    plain = isinstance(model, VisionTransformer) and model.num_prefix_tokens == 1 and model.pos_embed is not None
    return plain and all(map(_packable, cast(VisionTransformer, model).blocks))


def _packable(block: nn.Module) -> bool:
    """Tell whether a block is timm's plain one, whose attention ``packed_attention`` does again."""
    attn = getattr(block, "attn", None)
    return type(block) is Block and type(attn) is Attention and getattr(attn, "gate", None) is None


def packed_attention(attention: nn.Module, x_SD: Tensor, packing: Packing) -> Tensor:
    """Do what timm's ``Attention`` does, within each image: (S, D) -> (S, D)."""
    attn: Any = attention
    q_SHd, k_SHd, v_SHd = attn.qkv(x_SD).view(len(x_SD), 3, attn.num_heads, -1).unbind(1)
    q_SHd, k_SHd = attn.q_norm(q_SHd).to(v_SHd.dtype), attn.k_norm(k_SHd).to(v_SHd.dtype)
    if packing.mask is not None:
        read_SHd = _by_block_mask(q_SHd, k_SHd, v_SHd, packing)
    elif x_SD.device.type == "cuda":
        read_SHd = _by_flash(q_SHd, k_SHd, v_SHd, packing)
    else:
        read_SHd = _by_image(q_SHd, k_SHd, v_SHd, packing)
    projected: Tensor = attn.proj(attn.norm(read_SHd.flatten(1)))
    return projected


def path_scales(rate: float, noise_B2: Tensor, packing: Packing | None) -> tuple[Tensor, Tensor]:
    """Return the factors on a block's two branches: 1 / (1 - rate), or 0 for images that go around."""
    scale_B2 = (noise_B2 >= rate).float() / (1 - rate)
    if packing is None:
        return scale_B2[:, :1, None], scale_B2[:, 1:, None]
    scale_S2 = scale_B2.index_select(0, packing.rows_S)
    return scale_S2[:, :1], scale_S2[:, 1:]


def packed_reading(q_BHMd: Tensor, k_SHd: Tensor, v_SHd: Tensor, packing: Packing) -> Tensor:
    """Let each image's M queries read that image's packed tokens: (B, H, M, d)."""
    if q_BHMd.device.type == "cpu":
        return cast(Tensor, _read_by_image(q_BHMd, k_SHd, v_SHd, packing))
    if packing.mask is None:
        B, H, M, d = q_BHMd.shape
        ends = torch.arange(0, (B + 1) * M, M, device=q_BHMd.device, dtype=torch.int32)
        q_THd = q_BHMd.transpose(1, 2).reshape(B * M, H, d)
        read = cast(Tensor, varlen_attn(q_THd, k_SHd, v_SHd, ends, packing.offsets, M, packing.longest))
        return read.view(B, M, H, d).transpose(1, 2)
    return _read_padded(q_BHMd, k_SHd, v_SHd, packing)


def _read_padded(q_BHMd: Tensor, k_SHd: Tensor, v_SHd: Tensor, packing: Packing) -> Tensor:
    """Pad keys to the longest that there can be, so that no host waits: where no kernel takes ragged ones."""
    place_S = torch.arange(len(packing.rows_S), device=q_BHMd.device) - packing.offsets.long()[packing.rows_S]
    place_S = packing.rows_S * packing.longest + place_S
    L, H, d = packing.longest, *k_SHd.shape[1:]
    padded = (x.new_zeros(len(packing.cls_B) * L, H, d).index_copy(0, place_S, x) for x in (k_SHd, v_SHd))
    k, v = (x.view(-1, L, H, d).transpose(1, 2) for x in padded)
    real_BL = torch.arange(L, device=q_BHMd.device) < packing.offsets.diff()[:, None]
    padded_read: Tensor = F.scaled_dot_product_attention(q_BHMd, k, v, real_BL[:, None, None])
    return padded_read


@torch.compiler.disable  # type: ignore[untyped-decorator]  # other lengths would be another graph in every step
def _read_by_image(q_BHMd: Tensor, k_SHd: Tensor, v_SHd: Tensor, packing: Packing) -> Tensor:
    """Read image by image, on views."""
    lengths = list(packing.lengths)
    keys, values = (x.transpose(0, 1)[None].split(lengths, dim=2) for x in (k_SHd, v_SHd))  # type: ignore[no-untyped-call]
    read = [F.scaled_dot_product_attention(q[None], k, v) for q, k, v in zip(q_BHMd, keys, values, strict=True)]
    return torch.cat(read)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # other lengths would be another graph in every step
def _by_image(q_SHd: Tensor, k_SHd: Tensor, v_SHd: Tensor, packing: Packing) -> Tensor:
    """Attend image by image, on views, neighbours of one length at once; buckets would gain nothing, see LOG.md."""
    read, start = [], 0
    for length, run in groupby(packing.lengths):
        count = len(tuple(run))
        end = start + count * length
        q, k, v = (x[start:end].view(count, length, *x.shape[1:]).transpose(1, 2) for x in (q_SHd, k_SHd, v_SHd))
        read.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1))
        start = end
    return torch.cat(read)


def _by_flash(q_SHd: Tensor, k_SHd: Tensor, v_SHd: Tensor, packing: Packing) -> Tensor:
    """Attend by the flash kernel for ragged batches."""
    bounds, longest = packing.offsets, packing.longest
    return cast(Tensor, varlen_attn(q_SHd, k_SHd, v_SHd, bounds, bounds, longest, longest))


def _by_block_mask(q_SHd: Tensor, k_SHd: Tensor, v_SHd: Tensor, packing: Packing) -> Tensor:
    """Attend over all tokens with FlexAttention, which skips blocks without a pair of tokens of one image."""
    q, k, v = (values.transpose(0, 1)[None] for values in (q_SHd, k_SHd, v_SHd))
    read: Tensor = _compiled(flex_attention)(q, k, v, block_mask=packing.mask)
    return read[0].transpose(0, 1)


def _block_mask(rows_S: Tensor) -> BlockMask:
    """Build FlexAttention's mask: tokens see the tokens of their image."""

    def same_image(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return rows_S[query] == rows_S[key]

    S = len(rows_S)
    mask: BlockMask = _compiled(create_block_mask)(same_image, None, None, S, S, device=rows_S.device)
    return mask


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile what is slow and large in memory otherwise."""
    return torch.compile(function)


def _has_varlen(device: torch.device) -> bool:
    """Tell whether the flash kernels for ragged batches take what attention will be given under this autocast."""
    half = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") in (torch.bfloat16, torch.float16)
    return half and torch.cuda.get_device_capability(device) >= (8, 0)
