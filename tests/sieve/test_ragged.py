"""Ragged layouts hold every kept patch once, in order; what is taken comes back where it was."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terrasieve import keyed
from terrasieve.sieve.ragged import mean_ragged, pack, padded, scatter_ragged, take_ragged


@st.composite
def masks(draw: st.DrawFn) -> torch.Tensor:
    B, N = draw(st.integers(1, 5)), draw(st.integers(1, 10))
    rows = st.lists(st.booleans(), min_size=N, max_size=N).filter(any)
    return torch.tensor([draw(rows) for _ in range(B)])


@settings(deadline=None)
@given(masks())
def test_layouts_are_those_of_the_loop(keep: torch.Tensor) -> None:
    B, N = keep.shape
    values = torch.randn(B, N, 3, generator=keyed.generator(0, "test"))
    layout = pack(keep)
    ids, rows, lengths = [], [], []
    for row in range(B):
        kept = [i for i in range(N) if keep[row, i]]
        ids += kept
        rows += [row] * len(kept)
        lengths.append(len(kept))
    assert (layout.ids_T.tolist(), layout.rows_T.tolist(), list(layout.lengths)) == (ids, rows, lengths)
    assert (
        layout.offsets.tolist() == [sum(lengths[:row]) for row in range(B + 1)] and layout.offsets.dtype == torch.int32
    )
    taken = take_ragged(values, layout)
    assert torch.equal(taken, values[keep])
    grid = scatter_ragged(taken, layout, N, 7.0)
    assert torch.equal(grid, torch.where(keep[..., None], values, 7.0))
    block, mask = padded(taken, layout)
    means = mean_ragged(taken, layout)
    for row in range(B):
        assert mask[row].tolist() == [i < lengths[row] for i in range(max(lengths))]
        assert torch.equal(block[row, : lengths[row]], values[row, keep[row]])
        assert torch.allclose(means[row], values[row, keep[row]].mean(dim=0), atol=1e-6)


def test_gradients_reach_values_and_fill() -> None:
    keep = torch.tensor([[True, False, True], [False, False, True]])
    layout = pack(keep)
    values = torch.randn(3, 2, generator=keyed.generator(0, "test"), requires_grad=True)
    fill = torch.zeros(2, requires_grad=True)
    weight = torch.arange(12.0).view(2, 3, 2)
    (scatter_ragged(values, layout, 3, fill) * weight).sum().backward()
    assert torch.equal(values.grad, weight[keep])
    assert torch.equal(fill.grad, weight[~keep].sum(dim=0))
    values.grad = None
    mean_ragged(values, layout).sum().backward()
    assert values.grad.tolist() == [[0.5, 0.5], [0.5, 0.5], [1.0, 1.0]]


def test_a_known_total_gives_the_same_layout() -> None:
    keep = torch.tensor([[True, False], [True, True]])
    one, two = pack(keep), pack(keep, 3)
    assert torch.equal(one.ids_T, two.ids_T) and one.lengths == two.lengths and len(one) == 2
