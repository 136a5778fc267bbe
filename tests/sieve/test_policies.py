"""PSTS against recorded numbers and naive loops; what is chosen partitions the grid."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terrasieve.sieve.policies import (
    Shares,
    grow_seeds,
    random_ids,
    richest_ids,
    sampling_scores,
    stage_shares,
)

CASES = json.loads((Path(__file__).parents[1] / "fixtures" / "psts.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"epoch {c['epoch_of_800']}")
def test_growth_is_the_recorded_one(case: dict) -> None:  # type: ignore[type-arg]
    tokens, seeds = torch.tensor(case["tokens"]), torch.tensor(case["seed_ids"])
    ids = grow_seeds(tokens, seeds, (2, 3), stage_shares(case["epoch_of_800"] / 800))
    assert [sorted(row) for row in ids.tolist()] == [sorted(row) for row in case["selected_ids"]]
    left = [sorted(set(range(36)) - set(row)) for row in ids.tolist()]
    assert left == case["unselected_ids_sorted"]


def naive_growth(tokens_ND: np.ndarray, seeds: list[int], rounds: tuple[int, ...], near: bool) -> list[int]:
    """Grow one image's seeds patch by patch, the slow way."""
    chosen = list(seeds)
    for count in rounds:
        scores = {}
        for candidate in set(range(len(tokens_ND))) - set(chosen):
            similarities = [
                float(np.dot(tokens_ND[candidate], tokens_ND[i]))
                / float(np.linalg.norm(tokens_ND[candidate]) * np.linalg.norm(tokens_ND[i]))
                for i in chosen
            ]
            scores[candidate] = max(similarities)
        chosen += sorted(scores, key=lambda c: scores[c], reverse=near)[:count]
    return chosen


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_growth_is_that_of_a_naive_loop(seed: int, near: bool) -> None:
    draw = np.random.Generator(np.random.Philox(seed))
    tokens = draw.normal(size=(3, 30, 8))
    seeds = np.stack([draw.permutation(30)[:4] for _ in range(3)])
    ids = grow_seeds(torch.from_numpy(tokens), torch.from_numpy(seeds), (3, 4), "near" if near else "far")
    for row in range(3):
        assert set(ids[row].tolist()) == set(naive_growth(tokens[row], seeds[row].tolist(), (3, 4), near))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(8, 60), st.floats(0, 1))
def test_encoded_targets_and_unused_partition_the_grid(seed: int, patches: int, progress: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    richness = torch.rand(2, patches, generator=draw)
    richness[0] = 0.5  # ties must not make ids repeat
    tokens = torch.randn(2, patches, 6, generator=draw)
    seeds = richest_ids(richness, 2)
    kept = grow_seeds(tokens, seeds, (1, 2), stage_shares(progress), draw)
    targets = richest_ids(richness, patches // 3, kept)
    assert kept.shape == (2, 5)
    for row in range(2):
        together = kept[row].tolist() + targets[row].tolist()
        assert len(set(together)) == 5 + patches // 3
        assert set(together) <= set(range(patches))


def test_stages_follow_the_published_curriculum() -> None:
    assert stage_shares(0.0) == stage_shares(0.3499) == Shares(1, 0, 0)
    assert stage_shares(0.3625) == pytest.approx(Shares(0.5, 0.5, 0))
    assert stage_shares(0.375) == stage_shares(0.7249) == Shares(0, 1, 0)
    assert stage_shares(0.7375) == pytest.approx(Shares(0, 0.5, 0.5))
    assert stage_shares(0.75) == stage_shares(1.0) == Shares(0, 0, 1)
    assert stage_shares(0.1, ("far", "near", "random")) == Shares(0, 1, 0)
    assert stage_shares(0.4, ("near", "near", "near")) == pytest.approx(Shares(1, 0, 0))


def test_random_growth_is_uniform_per_sample_and_keyed() -> None:
    tokens = torch.randn(2000, 10, 4, generator=torch.Generator().manual_seed(0))
    seeds = torch.zeros(2000, 1, dtype=torch.long)
    ids = grow_seeds(tokens, seeds, (1, 2), "random", torch.Generator().manual_seed(1))
    again = grow_seeds(tokens, seeds, (1, 2), "random", torch.Generator().manual_seed(1))
    assert torch.equal(ids, again)
    counts = torch.bincount(ids[:, 1:].flatten(), minlength=10)
    assert counts[0] == 0
    assert (counts[1:] - 6000 / 9).abs().max() < 5 * (6000 / 9) ** 0.5


def test_sampling_follows_richness_to_the_power_of_one_over_temperature() -> None:
    richness = torch.tensor([1.0, 2.0, 4.0, 0.0]).expand(40000, 4)
    noise = torch.rand(40000, 4, generator=torch.Generator().manual_seed(3))
    for temperature in (1.0, 2.0):
        first = sampling_scores(richness, noise, temperature).argmax(dim=1)
        share = torch.bincount(first, minlength=4) / 40000
        expected = torch.tensor([1.0, 2.0, 4.0, 0.0]) ** (1 / temperature)
        assert (share - expected / expected.sum()).abs().max() < 0.012
    assert random_ids(noise, 4).sort(dim=1).values[0].tolist() == [0, 1, 2, 3]


def test_too_many_picks_are_refused() -> None:
    with pytest.raises(ValueError, match="2 seeds and 9 picks out of 10"):
        grow_seeds(torch.randn(1, 10, 3), torch.tensor([[0, 1]]), (4, 5), "near")
