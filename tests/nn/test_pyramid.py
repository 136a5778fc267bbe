"""Pyramid and UPerNet: sizes for any grid, independence of the batch, and the parts against what they replace."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terrasieve import keyed
from terrasieve.nn.encoder import initialise
from terrasieve.nn.heads import UPerNet
from terrasieve.nn.pyramid import SCALES, TokenPyramid, group_norm, rescale


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=keyed.generator(0, "test", *shape))


def built(module: nn.Module) -> nn.Module:
    initialise(module, 0, "test")
    return module


@pytest.mark.parametrize("grid", [(1, 1), (4, 4), (3, 5), (7, 2)], ids=str)
def test_sizes_for_any_grid(grid: tuple[int, int]) -> None:
    pyramid = built(TokenPyramid(24, 16, grid, SCALES, "zeros"))
    maps = pyramid([draw(2, grid[0] * grid[1], 24)] * 4, None)
    assert [tuple(m.shape) for m in maps] == [
        (2, 16, -(-grid[0] * up // down), -(-grid[1] * up // down)) for up, down in ((4, 1), (2, 1), (1, 1), (1, 2))
    ]
    assert maps[2].is_contiguous(memory_format=torch.channels_last)
    size_px = (grid[0] * 16, grid[1] * 16)
    logits = built(UPerNet(16, 4, 3))(maps, size_px)
    assert logits.shape == (2, 3, *size_px) and logits.isfinite().all()


@pytest.mark.parametrize("scale", [8.0, 2.0, 1.0, 0.25, 0.125])
def test_a_level_is_as_much_finer_as_its_scale(scale: float) -> None:
    assert rescale(16, scale)(draw(1, 16, 8, 16)).shape[-2:] == (8 * scale, 16 * scale)


def test_tokens_lie_where_their_patches_do() -> None:
    """Level x1 of a pyramid is each token's projection at its own row and column."""
    pyramid = built(TokenPyramid(24, 16, (3, 5), (1.0, 0.5), "zeros"))
    tokens_BND = draw(2, 15, 24)
    finest = pyramid([tokens_BND, tokens_BND], None)[0]
    normed = F.layer_norm(tokens_BND[1, 2 * 5 + 3], (24,), eps=1e-6)
    torch.testing.assert_close(finest[1, :, 2, 3], pyramid.projections[0](normed))


def test_an_image_does_not_see_its_batch_nor_the_mode() -> None:
    """What GroupNorm is there for."""
    pyramid, head = built(TokenPyramid(24, 16, (4, 4), SCALES, "zeros")), built(UPerNet(16, 4, 3))
    tokens_BND = draw(3, 16, 24)
    together = head.train()(pyramid.train()([tokens_BND] * 4, None), (64, 64))
    alone = head.eval()(pyramid.eval()([tokens_BND[1:2]] * 4, None), (64, 64))
    torch.testing.assert_close(together[1:2], alone)


@pytest.mark.parametrize("width", [4, 16, 48, 256, 384])
def test_groups_of_at_least_four_channels(width: int) -> None:
    norm = group_norm(width)
    assert width % norm.num_groups == 0 and width // norm.num_groups >= 4 and norm.num_groups <= 32


def test_head_sees_the_whole_image_and_every_level() -> None:
    """The pooled context carries a change in one corner to the other; each level's map has a say."""
    head = built(UPerNet(16, 4, 3))
    maps = [draw(1, 16, side, side).requires_grad_() for side in (16, 8, 4, 2)]
    head(maps, (32, 32))[0, :, 0, 0].sum().backward()
    assert all(m.grad is not None and m.grad[0, :, 0, 0].abs().sum() > 0 for m in maps)
    assert maps[3].grad[0, :, -1, -1].abs().sum() > 0
