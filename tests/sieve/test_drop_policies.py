"""Policies against naive loops, ties included; budgets are kept to the token."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terrasieve import keyed
from terrasieve.sieve.dropping import budget_keep, calibrated, dynamic_keep, static_ids

# Few distinct values, so that ties are the rule; inf is a patch without data.
VALUES = st.sampled_from([-0.5, 0.0, 0.25, 0.5, 0.75, float("inf")])


@st.composite
def scores(draw: st.DrawFn) -> torch.Tensor:
    B, N = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    return torch.tensor([[draw(VALUES) for _ in range(N)] for _ in range(B)])


def least(row: list[float], count: int, among: list[int] | None = None) -> list[int]:
    """Take the lowest scores one by one, lower id first."""
    rest, chosen = list(range(len(row)) if among is None else among), []
    for _ in range(count):
        best = rest[0]
        for i in rest:
            if row[i] < row[best]:
                best = i
        rest.remove(best)
        chosen.append(best)
    return sorted(chosen)


@settings(deadline=None)
@given(scores(), st.data())
def test_static_and_dynamic_are_the_loops(score: torch.Tensor, data: st.DataObject) -> None:
    N = score.shape[1]
    count = data.draw(st.integers(1, N))
    threshold = data.draw(st.sampled_from([-1.0, 0.0, 0.3, 0.5, 2.0]))
    ids, keep = static_ids(score, count), dynamic_keep(score, threshold, count)
    for row, values in enumerate(score.tolist()):
        assert ids[row].tolist() == least(values, count)
        below = [i for i, value in enumerate(values) if value < threshold]
        assert keep[row].nonzero()[:, 0].tolist() == sorted({*below, *least(values, count)})


@settings(deadline=None)
@given(scores(), st.data())
def test_calibrated_threshold_keeps_what_was_asked_but_for_ties(score: torch.Tensor, data: st.DataObject) -> None:
    tokens = data.draw(st.integers(0, score.numel()))
    threshold = calibrated(score, tokens).item()
    flat = sorted(score.flatten().tolist())
    below = sum(value < threshold for value in flat)
    assert below <= tokens
    assert tokens - below <= flat.count(threshold)
    if tokens < len(flat):
        assert below + flat.count(threshold) > tokens
    distinct = torch.arange(12.0).view(3, 4)
    assert (distinct < calibrated(distinct, min(tokens, 12))).sum() == min(tokens, 12)


@settings(deadline=None)
@given(scores(), st.data())
def test_budget_is_the_loop_and_exact(score: torch.Tensor, data: st.DataObject) -> None:
    B, N = score.shape
    k_min = data.draw(st.integers(1, N))
    tokens = data.draw(st.integers(B * k_min, B * N))
    floor = data.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    noise = torch.rand(B, N, generator=keyed.generator(data.draw(st.integers(0, 99)), "test"))
    keep = budget_keep(score, tokens, floor, noise, k_min)
    assert keep.sum() == tokens and (keep.sum(dim=1) >= k_min).all()

    kept: set[tuple[int, int]] = set()
    each = int(floor * tokens) // B
    for row, values in enumerate(score.tolist()):
        luck = [noise[row, i].item() + (value == float("inf")) for i, value in enumerate(values)]
        drawn = least(luck, each)
        rest = [i for i in range(N) if i not in drawn]
        kept |= {(row, i) for i in [*drawn, *least(values, max(k_min - each, 0), rest)]}
    others = [(score[r, i].item(), r, i) for r in range(B) for i in range(N) if (r, i) not in kept]
    kept |= {(r, i) for _, r, i in sorted(others)[: tokens - len(kept)]}
    assert {tuple(place) for place in keep.nonzero().tolist()} == kept


def test_many_equal_scores_go_by_id() -> None:
    equal = torch.zeros(2, 300)
    assert static_ids(equal, 40).tolist() == [list(range(40))] * 2
    assert budget_keep(equal, 340, 0.0, equal, 1).sum(dim=1).tolist() == [299 + 1, 40]


def test_images_without_data_and_thresholds_that_keep_nothing_keep_k_min() -> None:
    score = torch.tensor([[float("inf")] * 5, [0.3, 0.1, 0.2, 0.9, 0.8]])
    keep = dynamic_keep(score, -1.0, 2)
    assert keep[0].nonzero()[:, 0].tolist() == [0, 1]
    assert keep[1].nonzero()[:, 0].tolist() == [1, 2]
    assert static_ids(score, 2).tolist() == [[0, 1], [1, 2]]
    assert budget_keep(score, 6, 0.0, score, 2).sum(dim=1).tolist() == [2, 4]


def test_impossible_numbers_are_refused() -> None:
    score = torch.zeros(2, 4)
    for call in (
        lambda: static_ids(score, 0),
        lambda: static_ids(score, 5),
        lambda: dynamic_keep(score, 0.5, 5),
        lambda: calibrated(score, 9),
        lambda: budget_keep(score, 3, 0.1, score, 2),
        lambda: budget_keep(score, 9, 0.1, score, 1),
        lambda: budget_keep(score, 4, 1.1, score, 1),
    ):
        with pytest.raises(ValueError, match=r"of 4|of 8"):
            call()
