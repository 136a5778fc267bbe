"""Redundancy scores against loops over pairs of patches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terrasieve import keyed
from terrasieve.sieve import similarity
from terrasieve.sieve.similarity import effective_rank, redundancy


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=keyed.generator(seed, "test"))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0


def naive(tokens_ND: np.ndarray, reduction: str, valid: list[bool]) -> list[float]:
    """Score one image's patches, pair by pair."""
    real = [i for i, is_real in enumerate(valid) if is_real]
    scores = [math.inf] * len(valid)
    means = {i: [cosine(tokens_ND[i], tokens_ND[j]) for j in real if j != i] for i in real}
    if reduction == "cover":
        kept: list[int] = []
        while len(kept) < len(real):
            rest = [i for i in real if i not in kept]
            if kept:
                likeness = {i: max(cosine(tokens_ND[i], tokens_ND[j]) for j in kept) for i in rest}
            else:
                likeness = {i: float(np.mean(means[i])) if means[i] else -1.0 for i in rest}
            chosen = min(rest, key=lambda i: (likeness[i], i))
            scores[chosen] = likeness[chosen] if kept else -1.0
            kept.append(chosen)
        return scores
    for i in real:
        reduce = np.mean if reduction == "mean" else max
        scores[i] = float(reduce(means[i])) if means[i] else -1.0
    return scores


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 12), st.sampled_from(["mean", "largest", "cover"]), st.booleans(),
    st.integers(0, 10**6),
)  # fmt: skip
def test_scores_are_those_of_the_loops(B: int, N: int, reduction: str, partial: bool, seed: int) -> None:
    tokens = noise(B, N, 5, seed=seed)
    valid = noise(B, N, seed=seed + 1) > 0 if partial else None
    scores = redundancy(tokens, reduction, valid)  # type: ignore[arg-type]
    assert scores.dtype == torch.float32
    for row in range(B):
        real = [True] * N if valid is None else valid[row].tolist()
        expected = naive(tokens[row].double().numpy(), reduction, real)
        if reduction == "cover" and sum(real) == 2:  # two means that differ in rounding alone: either may be first
            assert sorted(scores[row].tolist()) == pytest.approx(sorted(expected), abs=1e-5)
        else:
            assert scores[row].tolist() == pytest.approx(expected, abs=1e-5)


def test_what_has_no_data_takes_no_part() -> None:
    tokens = noise(2, 9, 6)
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[0, [2, 5]] = False
    valid[1] = False
    for reduction in ("mean", "largest", "cover"):
        scores = redundancy(tokens, reduction, valid)
        rest = [i for i in range(9) if i not in (2, 5)]
        assert torch.allclose(scores[0, rest], redundancy(tokens[:1, rest], reduction)[0], atol=1e-6)
        assert scores[0, [2, 5]].isposinf().all() and scores[1].isposinf().all()
        other = torch.where(valid[..., None], tokens, noise(2, 9, 6, seed=1))
        assert torch.equal(redundancy(other, reduction, valid), scores)


def test_cover_orders_its_choices_and_keeps_one_of_each_kind() -> None:
    kinds = noise(4, 32)
    tokens = kinds.repeat_interleave(torch.tensor([20, 1, 6, 3]), dim=0)[None] + 0.01 * noise(1, 30, 32, seed=1)
    kind = torch.arange(4).repeat_interleave(torch.tensor([20, 1, 6, 3]))
    cover = redundancy(tokens, "cover")[0]
    assert kind[cover < 0.9].sort().values.tolist() == [0, 1, 2, 3]
    mean = redundancy(tokens, "mean")[0]
    assert (kind[mean.argsort()[:4]] != 0).all()  # the mean keeps the minorities, and never the largest kind


def test_memory_is_bounded_by_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = noise(5, 8, 4)
    whole = {name: redundancy(tokens, name) for name in ("largest", "cover")}  # type: ignore[arg-type]
    monkeypatch.setattr(similarity, "_PAIRS", 2 * 64)
    for name, scores in whole.items():
        assert torch.allclose(redundancy(tokens, name), scores, atol=1e-6)  # type: ignore[arg-type]


def test_equal_and_zero_patches_and_no_gradient_and_half_precision() -> None:
    same = torch.ones(1, 6, 4, requires_grad=True)
    assert torch.allclose(redundancy(same), torch.ones(1, 6)) and not redundancy(same).requires_grad
    zero = torch.zeros(1, 6, 4)
    assert torch.equal(redundancy(zero), torch.zeros(1, 6))
    tokens = noise(2, 9, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(redundancy(tokens), redundancy(tokens.float()), atol=1e-6)
        assert (redundancy(tokens, "largest") - redundancy(tokens.bfloat16().float(), "largest")).abs().max() < 0.02


def test_effective_rank_is_the_entropys() -> None:
    tokens = noise(2, 20, 8)
    for row in range(2):
        shares = np.linalg.svd(tokens[row].double().numpy(), compute_uv=False)
        shares = shares / shares.sum()
        assert effective_rank(tokens)[row].item() == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-4)
    one = noise(1, 20, 1) @ noise(1, 1, 8)
    assert effective_rank(one).item() == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.eye(7)[None]).item() == pytest.approx(7, rel=1e-5)
    assert effective_rank(torch.zeros(1, 5, 3)).item() == 1
