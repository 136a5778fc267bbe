"""Dropping keeps what its settings say: counts, calibration, caches, images without data, when it acts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from terrasieve import keyed
from terrasieve.batch import Batch, Rows
from terrasieve.errors import UserError
from terrasieve.methods.dropping import Dropping, DropSettings
from terrasieve.nn.encoder import Encoder, EncoderSettings
from terrasieve.nn.patches import patchify
from terrasieve.sieve.ragged import Ragged
from terrasieve.sieve.similarity import redundancy

N = 16
POLICIES = ("static", "dynamic", "random", "budget")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(EncoderSettings(name="vit_tiny_patch16_224", patch_px=8, depth=1), 3, (32, 32))


def batch_of(count: int = 6, seed: int = 0) -> Batch:
    """Images that are flat but for a number of noisy patches, another in each."""
    draw = keyed.generator(seed, "test")
    noisy = torch.arange(N) < torch.linspace(1, N - 1, count).int()[:, None]
    mask = noisy.view(count, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    image = 1.0 + mask * 3 * torch.randn(count, 3, 32, 32, generator=draw)
    image = image + 0.02 * torch.randn(count, 3, 32, 32, generator=draw)
    nowhere = torch.full((count,), torch.nan, dtype=torch.float64)
    return Batch(image, nowhere, nowhere, nowhere, torch.arange(count))


def drop(encoder: Encoder, dropping: Dropping, batch: Batch, seed: int = 0) -> Any:
    return dropping(encoder, batch, patchify(batch.image, 8), keyed.generator(seed, "mask"))


def kept(encoder: Encoder, batch: Batch, training: bool = False, **settings: Any) -> Tensor:
    """Return what is kept as (B, N) bool."""
    made = drop(encoder, Dropping(DropSettings(**settings), N).train(training), batch)
    keep = torch.zeros(len(batch), N, dtype=torch.bool)
    if isinstance(made, Ragged):
        keep[made.rows_T, made.ids_T] = True
        return keep
    assert (made.diff(dim=1) > 0).all()
    return keep.scatter(1, made, True)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("ratio", [0.3, 0.6, 0.85])
def test_the_ratio_is_kept_to_and_draws_are_keyed(encoder: Encoder, policy: str, ratio: float) -> None:
    batch, count = batch_of(), round((1 - ratio) * N)
    keep = kept(encoder, batch, training=True, policy=policy, ratio=ratio)
    assert keep.sum() == 6 * count
    assert torch.equal(keep, kept(encoder, batch, training=True, policy=policy, ratio=ratio))
    if policy in ("static", "random"):
        assert (keep.sum(dim=1) == count).all()
    else:
        assert (keep.sum(dim=1) >= 1).all() and keep.sum(dim=1).unique().numel() > 1


def test_static_keeps_the_least_redundant_of_embeddings_or_pixels(encoder: Encoder) -> None:
    batch = batch_of()
    patches = patchify(batch.image, 8)
    for of, values in (("pixels", patches), ("embeddings", encoder.embed(patches, position=False))):
        for reduction in ("mean", "largest", "cover"):
            expected = redundancy(values, reduction).argsort(dim=1)[:, :5]
            keep = kept(encoder, batch, policy="static", ratio=0.7, of=of, reduction=reduction)
            assert torch.equal(keep, torch.zeros_like(keep).scatter(1, expected, True))


def test_thresholds_count_image_by_image(encoder: Encoder) -> None:
    batch = batch_of()
    keep = kept(encoder, batch, policy="dynamic", threshold=0.5, of="pixels", k_min=2)
    score = redundancy(patchify(batch.image, 8))
    below = score < 0.5
    assert (keep & ~below).sum(dim=1).le(2).all() and (keep.sum(dim=1) >= 2).all() and (keep | ~below).all()
    alone = [
        kept(encoder, batch.part(i, i + 1), policy="dynamic", threshold=0.5, of="pixels", k_min=2) for i in range(6)
    ]
    assert torch.equal(keep, torch.cat(alone))


def test_calibration_learns_a_threshold_that_keeps_the_ratio_at_inference(encoder: Encoder) -> None:
    dropping = Dropping(DropSettings(policy="dynamic", ratio=0.6, of="pixels"), N)
    for seed in range(20):
        drop(encoder, dropping.train(), batch_of(seed=seed))
    assert dropping.threshold.isfinite()
    again = Dropping(dropping.settings, N).eval()
    again.load_state_dict(dropping.state_dict())
    total = sum(len(drop(encoder, again, batch_of(seed=seed)).ids_T) for seed in range(20, 30))
    assert total / (10 * 6 * N) == pytest.approx(0.4, abs=0.05)
    one = drop(encoder, again, batch_of(seed=20).part(0, 1))
    assert one.lengths[0] == drop(encoder, again, batch_of(seed=20)).lengths[0]  # no longer a matter of the batch
    before = dropping.threshold.clone()
    drop(encoder, dropping.eval(), batch_of(seed=99))
    assert torch.equal(dropping.threshold, before)


def test_patches_without_data_go_first_under_every_policy(encoder: Encoder) -> None:
    batch = batch_of()
    valid = torch.ones(6, 32, 32, dtype=torch.bool)
    valid[0] = False
    valid[1:, 16:] = False  # the lower half: patches 8 to 15
    valid[1:, 16, 0] = True  # but for a pixel of patch 8
    image = batch.image.masked_fill(~valid[:, None], 0.0)
    batch = replace(batch, image=image, valid=valid)
    scores = Dropping(DropSettings(policy="static"), N).scores(encoder, batch, patchify(image, 8))
    assert scores[1:, :9].isfinite().all() and scores[1:, 9:].isposinf().all() and scores[0].isposinf().all()
    for policy in POLICIES:
        keep = kept(encoder, batch, policy=policy, ratio=0.6, k_min=3)
        assert not keep[1:, 9:].any(), policy
        assert (keep.sum(dim=1) >= 3).all(), policy
    assert kept(encoder, batch, policy="dynamic", threshold=0.9, k_min=3)[0].nonzero()[:, 0].tolist() == [0, 1, 2]


def test_random_patches_do_not_depend_on_how_the_batch_is_divided(encoder: Encoder) -> None:
    batch = replace(batch_of(), rows=Rows(0, 6))
    whole = kept(encoder, batch, policy="random", ratio=0.5)
    parts = [kept(encoder, batch.part(i, i + 3), policy="random", ratio=0.5) for i in (0, 3)]
    assert torch.equal(whole, torch.cat(parts))


def test_budget_gives_rich_images_more_and_everyone_some_at_random(encoder: Encoder) -> None:
    batch = batch_of()
    keep = kept(encoder, batch, policy="budget", ratio=0.6, of="pixels", floor=0.0)
    assert keep[5].sum() > keep[0].sum()
    even = kept(encoder, batch, policy="budget", ratio=0.625, of="pixels", floor=1.0)
    assert (even.sum(dim=1) == 6).all()


def test_cached_scores_are_taken_from_the_batch(encoder: Encoder) -> None:
    scores = torch.rand(6, N, generator=keyed.generator(0, "test"))
    batch = replace(batch_of(), redundancy=scores)
    keep = kept(encoder, batch, policy="static", ratio=0.75, cached=True)
    assert torch.equal(keep, torch.zeros_like(keep).scatter(1, scores.argsort(dim=1)[:, :4], True))
    with pytest.raises(UserError, match="carries no scores"):
        kept(encoder, batch_of(), policy="static", ratio=0.75, cached=True)


@pytest.mark.parametrize(("when", "training", "inference"), [("always", 1, 1), ("training", 1, 0), ("inference", 0, 1)])
def test_it_acts_when_it_is_to(encoder: Encoder, when: Any, training: int, inference: int) -> None:
    for mode, acts in ((True, training), (False, inference)):
        dropping = Dropping(DropSettings(policy="static", ratio=0.5, when=when), N).train(mode)
        assert dropping.active == acts == (drop(encoder, dropping, batch_of()) is not None)
    assert drop(encoder, Dropping(DropSettings(ratio=0.5), N), batch_of()) is None


def test_settings_that_do_not_fit_are_refused() -> None:
    for wrong, said in (
        ({"policy": "static", "threshold": 0.5}, "for policy dynamic"),
        ({"policy": "dynamic", "threshold": 0.5, "ratio": 0.5}, "not both"),
        ({"ratio": 1.0}, "less than 1"),
    ):
        with pytest.raises(ValidationError, match=said):
            DropSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="k_min: 17 patches are to be kept, an image has 16"):
        Dropping(DropSettings(k_min=17), N)
