"""Fills against loops over places, and against torch's bilinear interpolation where every second patch is kept."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from terrasieve import keyed
from terrasieve.nn.fill import Fill, Filler
from terrasieve.nn.patches import take
from terrasieve.nn.position import sincos_2d
from terrasieve.sieve.ragged import Ragged, pack, take_ragged

GRIDS = [(4, 4), (3, 7), (1, 5)]
FILLS = get_args(Fill)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=keyed.generator(0, "test", *shape))


def layouts(grid: tuple[int, int]) -> dict[str, Tensor | Ragged]:
    """The same number of patches in every image, and 1, some, and all of them."""
    N = grid[0] * grid[1]
    order_BN = draw(3, N).argsort(dim=1)
    counts = torch.tensor([1, N // 2, N])
    keep_BN = torch.zeros(3, N, dtype=torch.bool).scatter(1, order_BN, torch.arange(N) < counts[:, None])
    return {"fixed": order_BN[:, : max(N // 3, 1)].sort(dim=1).values, "ragged": pack(keep_BN)}


def picked(values_BND: Tensor, kept: Tensor | Ragged) -> Tensor:
    return take_ragged(values_BND, kept) if isinstance(kept, Ragged) else take(values_BND, kept)


def ids_of(kept: Tensor | Ragged, image: int) -> list[int]:
    if isinstance(kept, Ragged):
        return kept.ids_T[kept.offsets[image] : kept.offsets[image + 1]].tolist()
    return kept[image].tolist()


def by_loop(
    fill: str, full_BND: Tensor, ids: list[int], b: int, n: int, grid: tuple[int, int], filler: Filler, content
):
    if n in ids:
        return full_BND[b, n]
    if fill == "zeros":
        return torch.zeros_like(full_BND[b, n])
    if fill == "learned":
        return filler.token[1] + sincos_2d(*grid, full_BND.shape[2])[n]
    if fill == "copy":
        cosines = [float(F.cosine_similarity(content[b, n], content[b, k], dim=0)) for k in ids]
        return full_BND[b, ids[cosines.index(max(cosines))]]
    steps = [(abs(n // grid[1] - k // grid[1]), abs(n % grid[1] - k % grid[1])) for k in ids]
    radius = 1 + min(max(step) for step in steps)
    weights = [max(0.0, 1 - dy / radius) * max(0.0, 1 - dx / radius) for dy, dx in steps]
    return sum(w * full_BND[b, k] for w, k in zip(weights, ids, strict=True)) / sum(weights)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("kind", ["fixed", "ragged"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_equals_a_loop(fill: Fill, kind: str, grid: tuple[int, int]) -> None:
    N = grid[0] * grid[1]
    kept = layouts(grid)[kind]
    full_BND, content_BND = draw(3, N, 8), draw(3, N, 5)
    filler = Filler(fill, 2, 8, grid)
    if fill == "learned":
        filler.token.data = draw(2, 8)
    tokens = picked(full_BND, kept)
    filled = filler([tokens + 1, tokens], kept, content_BND)[1]
    for b in range(3):
        for n in range(N):
            expected = by_loop(fill, full_BND, ids_of(kept, b), b, n, grid, filler, content_BND)
            torch.testing.assert_close(filled[b, n], expected, msg=f"image {b}, place {n}")


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["fixed", "ragged"])
def test_kept_tokens_are_untouched_to_the_bit(fill: Fill, dtype: torch.dtype, kind: str) -> None:
    kept = layouts((4, 4))[kind]
    tokens = picked(draw(3, 16, 8), kept).to(dtype)
    content_BND = draw(3, 16, 5)
    content_BND[:, 1:] = content_BND[:, :1]  # all alike: copy still takes a kept patch's own token
    (filled,) = Filler(fill, 1, 8, (4, 4))([tokens], kept, content_BND)
    assert filled.dtype == dtype and filled.shape == (3, 16, 8)
    assert torch.equal(picked(filled, kept), tokens)


def test_bilinear_is_bilinear_interpolation_where_every_second_patch_is_kept() -> None:
    coarse_BDhw = draw(2, 8, 4, 5)
    expected_BDHW = F.interpolate(coarse_BDhw, size=(7, 9), mode="bilinear", align_corners=True)
    rows, columns = torch.meshgrid(torch.arange(0, 7, 2), torch.arange(0, 9, 2), indexing="ij")
    ids_BK = (rows * 9 + columns).flatten().expand(2, -1)
    (filled,) = Filler("bilinear", 1, 8, (7, 9))([coarse_BDhw.flatten(2).transpose(1, 2)], ids_BK)
    torch.testing.assert_close(filled.transpose(1, 2).unflatten(2, (7, 9)), expected_BDHW)


@pytest.mark.parametrize("fill", FILLS)
def test_the_same_ids_in_both_layouts_give_the_same(fill: Fill) -> None:
    ids_BK = layouts((3, 7))["fixed"]
    layout = pack(torch.zeros(3, 21, dtype=torch.bool).scatter(1, ids_BK, True))
    full_BND, content_BND = draw(3, 21, 8), draw(3, 21, 5)
    filler = Filler(fill, 1, 8, (3, 7))
    (fixed,) = filler([take(full_BND, ids_BK)], ids_BK, content_BND)
    (ragged,) = filler([take_ragged(full_BND, layout)], layout, content_BND)
    torch.testing.assert_close(fixed, ragged)


@pytest.mark.parametrize("fill", FILLS)
def test_gradients_reach_tokens_and_nothing_is_filled_without_dropping(fill: Fill) -> None:
    kept = layouts((4, 4))["ragged"]
    filler = Filler(fill, 1, 8, (4, 4))
    tokens_TD = picked(draw(3, 16, 8), kept).requires_grad_()
    filler([tokens_TD], kept, draw(3, 16, 5))[0].square().sum().backward()
    assert tokens_TD.grad is not None and (tokens_TD.grad != 0).all()
    assert fill != "learned" or (filler.token.grad != 0).all()
    full_BND = draw(3, 16, 8)
    assert filler([full_BND], None)[0] is full_BND
