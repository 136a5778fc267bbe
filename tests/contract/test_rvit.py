"""RViT keeps the contract: finite loss, gradients everywhere, same generator same bits, parts are the whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from terrasieve import keyed
from terrasieve.batch import Batch, Rows
from terrasieve.methods import ADAPTERS, build
from terrasieve.methods.rvit import RViT, RViTSettings
from terrasieve.nn.encoder import Encoder, EncoderSettings
from terrasieve.nn.patches import patchify
from terrasieve.sieve.ragged import Ragged

DROPS: list[dict[str, Any]] = [
    {},
    {"policy": "static", "ratio": 0.5},
    {"policy": "random", "ratio": 0.5},
    {"policy": "dynamic", "ratio": 0.5},
    {"policy": "dynamic", "threshold": 0.1},
    {"policy": "budget", "ratio": 0.5, "floor": 0.5},
    {"policy": "static", "ratio": 0.75, "cached": True},
]
drops = pytest.mark.parametrize("drop", DROPS, ids=lambda d: "-".join(map(str, d.values())) or "none")


def rvit(drop: dict[str, Any], *, drop_path: float = 0.0, **choices: Any) -> RViT:
    settings = RViTSettings(**{"drop": drop, "classes": 5} | choices)
    encoder = EncoderSettings(name="vit_tiny_patch16_224", patch_px=8, depth=2, drop_path=drop_path)
    made = build(settings, Encoder(encoder, 4, (32, 32)))
    assert isinstance(made, RViT)
    return made


def batch_of(count: int = 8, several: bool = False) -> Batch:
    nowhere = torch.full((count,), torch.nan, dtype=torch.float64)
    image = torch.randn(count, 4, 32, 32, generator=keyed.generator(0, "test"))
    image = F.avg_pool2d(image, 9, 1, 4) * 9
    label = torch.arange(count) % 5
    if several:
        label = (torch.rand(count, 5, generator=keyed.generator(0, "labels")) < 0.4).float()
    scores = torch.rand(count, 16, generator=keyed.generator(0, "scores"))
    where = {"label": label, "redundancy": scores, "rows": Rows(0, count)}
    return Batch(image, nowhere, nowhere, nowhere, torch.arange(count), **where)  # type: ignore[arg-type]


def draw(step: int = 0) -> torch.Generator:
    return keyed.generator(0, "mask", step)


def test_the_union_holds_it() -> None:
    assert ADAPTERS["rvit"] is RViT


@drops
@pytest.mark.parametrize("pool", ["mean", "cls"])
@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_loss_is_finite_and_every_parameter_learns(drop: dict[str, Any], pool: str, several: bool) -> None:
    method = rvit(drop, pool=pool, multilabel=several)
    output = method(batch_of(several=several), draw())
    assert output.loss.isfinite()
    output.loss.backward()
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0 or parameter.ndim < 2, name
    if "ratio" in drop:
        assert float(output.metrics["kept_share"]) == pytest.approx(1 - drop["ratio"])


@drops
def test_same_generator_same_bits_and_parts_are_the_whole(drop: dict[str, Any]) -> None:
    method, batch = rvit(drop), batch_of()
    losses = [method(batch, draw(step)).loss for step in (3, 3, 4)]
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], losses[2]) != (drop.get("policy") in ("random", "budget"))
    if drop.get("policy") in ("budget", "dynamic") and "ratio" in drop:
        return  # a budget is shared within a micro-batch
    parts = [method(batch.part(start, start + 4), draw(3)).loss for start in (0, 4)]
    assert torch.allclose(torch.stack(parts).mean(), losses[0], atol=1e-6)


def test_drop_path_is_drawn_for_the_global_batch() -> None:
    method, batch = rvit({"policy": "static", "ratio": 0.5}, drop_path=0.8), batch_of()
    losses = [method(batch, draw(step)).loss for step in (3, 3, 4)]
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])
    parts = [method(batch.part(start, start + 4), draw(3)).loss for start in (0, 4)]
    assert torch.allclose(torch.stack(parts).mean(), losses[0], atol=1e-6)
    method.eval()
    assert torch.equal(method.predict(batch, draw(3)), method.predict(batch, draw(4)))


@pytest.mark.parametrize("when", ["always", "training", "inference"])
def test_patches_are_dropped_when_asked(when: str) -> None:
    method, batch = rvit({"policy": "static", "ratio": 0.5, "when": when}), batch_of()
    patches = patchify(batch.image, 8)
    for training in (True, False):
        kept = method.train(training).keep(batch, patches, draw())
        dropped = when in ("always", "training" if training else "inference")
        assert (kept is not None) == dropped
        flags = method(batch, draw(), picture=True).picture["kept"]
        assert flags.sum(1).tolist() == [8 if dropped else 16] * 8


def test_dropping_nothing_is_the_plain_vit() -> None:
    """Against timm's own forward over all patches."""
    method, batch = rvit({}).eval(), batch_of()
    with torch.no_grad():
        tokens = method.encoder.vit.forward_features(batch.image)
        expected = method.head(method.norm(tokens[:, 1:].mean(1)))
        assert torch.allclose(method.predict(batch, draw()), expected, atol=1e-5)
        plain = rvit({"policy": "dynamic", "threshold": 1.0}).eval()
        kept = plain.keep(batch, patchify(batch.image, 8), draw())
        assert isinstance(kept, Ragged)
        assert kept.lengths == (16,) * 8
        assert torch.allclose(plain.predict(batch, draw()), expected, atol=1e-5)


def test_the_least_redundant_are_kept_by_cached_scores() -> None:
    method, batch = rvit({"policy": "static", "ratio": 0.75, "cached": True}), batch_of()
    kept = method.keep(batch, patchify(batch.image, 8), draw())
    assert isinstance(kept, torch.Tensor) and batch.redundancy is not None
    for row in range(8):
        assert set(kept[row].tolist()) == set(batch.redundancy[row].argsort()[:4].tolist())


def test_losses_are_torchs() -> None:
    logits = torch.randn(8, 5, generator=keyed.generator(0, "logits"))
    weights = (0.5, 1.0, 2.0, 1.0, 3.0)
    label = torch.arange(8) % 5
    assert torch.allclose(rvit({}).loss(logits, label), F.cross_entropy(logits, label))
    smooth = rvit({}, smoothing=0.1).loss(logits, label)
    assert torch.allclose(smooth, F.cross_entropy(logits, label, label_smoothing=0.1))
    soft = F.one_hot(label, 5) * 0.7 + F.one_hot(label.flip(0), 5) * 0.3
    weighted = rvit({}, class_weights=weights)
    assert torch.allclose(weighted.loss(logits, soft), F.cross_entropy(logits, soft, torch.tensor(weights)))
    summed = F.cross_entropy(logits, label, torch.tensor(weights), reduction="sum")
    assert torch.allclose(weighted.loss(logits, label), summed / 8)
    several = batch_of(several=True).label
    assert several is not None
    binary = rvit({}, multilabel=True, class_weights=weights)
    expected = F.binary_cross_entropy_with_logits(logits, several, pos_weight=torch.tensor(weights))
    assert torch.allclose(binary.loss(logits, several), expected)


def test_images_without_any_data_are_classified_all_the_same() -> None:
    for drop in DROPS:
        method, batch = rvit(drop), batch_of()
        valid = torch.zeros(8, 32, 32, dtype=torch.bool)
        valid[0] = True
        empty = replace(batch, image=torch.where(valid[:, None], batch.image, 0.0), valid=valid)
        output = method(empty, draw(), picture=True)
        assert output.loss.isfinite(), drop
        assert (output.picture["kept"].sum(1) >= 1).all(), drop
        assert method.eval().predict(empty, draw()).isfinite().all(), drop


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
@pytest.mark.parametrize("drop", [DROPS[1], DROPS[3]], ids=["static", "dynamic"])
def test_overfits_eight_chips(drop: dict[str, Any], several: bool) -> None:
    method, batch = rvit(drop, multilabel=several), batch_of(several=several)
    assert batch.label is not None
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(60):
        method(batch, draw()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        logits = method.predict(batch, draw())
    right = (logits > 0).float() == batch.label if several else logits.argmax(1) == batch.label
    assert right.all()
