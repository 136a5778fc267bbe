"""Attention in windows is attention under a mask that lets a patch see its window only, whatever was dropped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import Tensor

from terrasieve import keyed
from terrasieve.errors import UserError
from terrasieve.nn.encoder import Encoder, EncoderSettings
from terrasieve.nn.windows import whole_blocks
from terrasieve.sieve.ragged import pack

GRID = (5, 7)
N = GRID[0] * GRID[1]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=keyed.generator(seed, "test"))


def encoder_of(**changes: Any) -> Encoder:
    settings = {"name": "vit_tiny_patch16_224", "patch_px": 8, "depth": 3, "window": 3, "whole_blocks": 1}
    return Encoder(EncoderSettings(**settings | changes), 3, (8 * GRID[0], 8 * GRID[1]))


def oracle(encoder: Encoder, patches_BNP: Tensor, kept_BN: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Encode all patches by timm's own block, under masks: windows, and in the last block the whole image."""
    window = torch.tensor([(place // GRID[1] // side, place % GRID[1] // side) for place in range(N)])
    same_NN = (window[:, None] == window[None]).all(-1)
    within = torch.eye(N + 1, dtype=torch.bool)
    within[1:, 1:] |= same_NN
    real_BS = torch.nn.functional.pad(kept_BN, (1, 0), value=True)
    cls = (encoder.vit.cls_token + encoder.positions[:, :1]).expand(len(patches_BNP), -1, -1)
    x = torch.cat([cls, encoder.embed(patches_BNP)], dim=1)
    for number, block in enumerate(encoder.vit.blocks):
        sees = torch.ones_like(within) if number == len(encoder.vit.blocks) - 1 else within
        mask = sees & real_BS[:, None, :] | torch.eye(N + 1, dtype=torch.bool)
        x = Block.forward(block, x, attn_mask=mask[:, None])
    x = encoder.vit.norm(x)
    return x[:, 0], x[:, 1:]


def agree(one: Tensor, two: Tensor) -> None:
    assert (one - two).abs().max() <= 1e-5 * max(1.0, two.abs().max().item())


@pytest.mark.parametrize("side", [1, 3, 4, 100])
def test_whole_images(side: int) -> None:
    encoder, patches = encoder_of(window=side), noise(2, N, 192)
    mine, theirs = (p.clone().requires_grad_() for p in (patches, patches))
    encoded = encoder.encode_kept(mine, None, (0,))
    cls, tokens = oracle(encoder, theirs, torch.ones(2, N, dtype=torch.bool), side)
    agree(encoded.cls_BD, cls)
    agree(encoded.tokens, tokens)
    (encoded.tokens * noise(*tokens.shape, seed=1)).sum().backward()
    (tokens * noise(*tokens.shape, seed=1)).sum().backward()
    assert mine.grad is not None and theirs.grad is not None
    agree(mine.grad, theirs.grad)


@pytest.mark.parametrize("counts", [[20, 3, 1], [N, 1, 17]])
def test_dropped_patches_leave_windows_of_any_size_some_empty(counts: list[int]) -> None:
    encoder, patches = encoder_of(), noise(3, N, 192)
    order = noise(3, N, seed=5).argsort(1).argsort(1)
    kept_BN = order < torch.tensor(counts)[:, None]
    encoded = encoder.encode_kept(patches, pack(kept_BN), (1,))
    cls, tokens = oracle(encoder, patches, kept_BN, 3)
    agree(encoded.cls_BD, cls)
    agree(encoded.tokens, tokens[kept_BN])
    assert encoded.taps[0].shape == encoded.tokens.shape
    ids = kept_BN[:1].nonzero()[:, 1][None].flip(1)  # ids need not ascend
    agree(encoder.encode_kept(patches[:1], ids).tokens[0].flip(0), encoded.tokens[: counts[0]])


def test_all_blocks_whole_is_no_window() -> None:
    plain, windowed = encoder_of(window=None).eval(), encoder_of(whole_blocks=3).eval()
    image = noise(2, 3, 8 * GRID[0], 8 * GRID[1])
    agree(windowed.features(image), plain.features(image))
    agree(windowed.features(image, "cls"), plain.features(image, "cls"))
    assert (encoder_of().eval().features(image) - plain.features(image)).abs().max() > 1e-3


def test_which_blocks_see_all() -> None:
    assert sorted(whole_blocks(12, 4)) == [2, 5, 8, 11]  # as ViTDet has it
    assert sorted(whole_blocks(24, 4)) == [5, 11, 17, 23]
    assert sorted(whole_blocks(5, 2))[-1] == 4 and len(whole_blocks(5, 2)) == 2


def test_drop_path_goes_by_images() -> None:
    """An image whose branches are all left out comes through as it was embedded."""
    encoder, patches = encoder_of(drop_path=0.9), noise(2, N, 192)
    path_noise = torch.tensor([[1.0] * 6, [0.0] * 6])  # kept everywhere; left out wherever a block can be
    tap = encoder.encode_kept(patches, None, (0, 1), path_noise).taps
    agree(tap[1][1], tap[0][1])
    assert (tap[1][0] - tap[0][0]).abs().max() > 1e-3


def test_where_windows_do_not_fit() -> None:
    with pytest.raises(UserError, match=r"encoder.window: 3 is for adapt, and for images of 40 x 56 px"):
        encoder_of()(noise(1, N, 192))
    with pytest.raises(UserError, match="leave it out"):
        encoder_of().encode(noise(1, 3, 80, 56))
    with pytest.raises(ValueError, match="window: only a ViT has this"):
        EncoderSettings(name="resnet18", window=7)
