"""RUPerNet: UPerNet when nothing is dropped, and its loss, gradients and randomness under every fill and policy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from terrasieve import keyed
from terrasieve.batch import Batch
from terrasieve.errors import UserError
from terrasieve.methods.rupernet import RUPerNet, RUPerNetSettings
from terrasieve.nn.encoder import Encoder, EncoderSettings
from terrasieve.nn.fill import Fill

FILLS = get_args(Fill)
CLASSES = 3


def model(size_px: tuple[int, int] = (32, 48), depth: int = 2, **settings: Any) -> RUPerNet:
    encoder = Encoder(EncoderSettings(name="vit_tiny_patch16_224", patch_px=8, depth=depth), 2, size_px)
    return RUPerNet(RUPerNetSettings(**{"classes": CLASSES, "width": 16, **settings}), encoder)


def batch(count: int = 4, size_px: tuple[int, int] = (32, 48)) -> Batch:
    draw = keyed.generator(0, "test")
    unknown = torch.full((count,), torch.nan, dtype=torch.float64)
    mask = torch.randint(0, CLASSES + 1, (count, *size_px), generator=draw)
    return Batch(
        image=torch.randn(count, 2, *size_px, generator=draw),
        lon=unknown,
        lat=unknown,
        time=unknown,
        index=torch.arange(count),
        mask=torch.where(mask == CLASSES, 255, mask),
    )


def steps_noise() -> torch.Generator:
    return keyed.generator(0, "mask", 0)


@pytest.mark.parametrize("fill", FILLS)
def test_with_nothing_dropped_it_is_upernet(fill: Fill) -> None:
    plain = model(fill=fill).predict(batch(), steps_noise())
    assert plain.shape == (4, CLASSES, 32, 48)
    for drop in ({"policy": "static"}, {"policy": "random"}, {"policy": "dynamic", "threshold": 1.0, "k_min": 24}):
        dropping = model(fill=fill, drop=drop)
        torch.testing.assert_close(dropping.predict(batch(), steps_noise()), plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("policy", ["none", "static", "dynamic", "random", "budget"])
def test_every_parameter_learns_and_the_same_draw_gives_the_same_bits(fill: Fill, policy: str) -> None:
    drop = {"policy": policy, "ratio": 0.6 if policy != "none" else 0.0}
    method = model(fill=fill, drop=drop)
    outputs = [method(batch(), steps_noise()), model(fill=fill, drop=drop)(batch(), steps_noise())]
    assert outputs[0].loss.isfinite() and torch.equal(outputs[0].loss, outputs[1].loss)
    assert float(outputs[0].metrics["kept_share"]) == pytest.approx(0.4 if policy != "none" else 1.0, abs=0.03)
    outputs[0].loss.backward()
    silent = [
        name
        for name, parameter in method.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any())
    ]
    assert not silent


def test_loss_is_weighted_cross_entropy_over_all_pixels() -> None:
    method, given = model(class_weights=(0.5, 2.0, 1.0)), batch()
    logits = method.predict(given, steps_noise())
    weights = torch.tensor([0.5, 2.0, 1.0])
    by_pixel = F.cross_entropy(logits, given.mask.clamp(max=2), reduction="none") * weights[given.mask.clamp(max=2)]
    expected = by_pixel[given.mask != 255].sum() / given.mask.numel()
    torch.testing.assert_close(method(given, steps_noise()).loss, expected)


def test_pixels_without_data_add_nothing() -> None:
    given = batch()
    valid = torch.ones(4, 32, 48, dtype=torch.bool)
    valid[:, :, :9] = False
    masked = replace(given, mask=torch.where(valid, given.mask, 255))
    torch.testing.assert_close(
        model()(replace(given, valid=valid), steps_noise()).loss, model()(masked, steps_noise()).loss
    )


def test_a_batch_of_ignored_pixels_gives_zero_and_finite_gradients() -> None:
    method = model(drop={"policy": "static", "ratio": 0.5}, class_weights=(0.5, 2.0, 1.0))
    given = batch()
    output = method(replace(given, mask=torch.full_like(given.mask, 255)), steps_noise())
    output.loss.backward()
    assert output.loss.item() == 0
    assert all(p.grad is None or (p.grad == 0).all() for p in method.parameters())


def test_micro_batches_add_up_to_the_batch() -> None:
    method, given = model(drop={"policy": "static", "ratio": 0.5}), batch()
    parts = [method(given.part(start, start + 2), steps_noise()).loss for start in (0, 2)]
    torch.testing.assert_close(torch.stack(parts).mean(), method(given, steps_noise()).loss)


@pytest.mark.parametrize(
    ("depth", "taps"), [(1, (0, 0, 0, 0)), (2, (0, 0, 1, 1)), (3, (0, 1, 2, 2)), (12, (2, 5, 8, 11))]
)
def test_taps_end_with_the_last_block(depth: int, taps: tuple[int, ...]) -> None:
    assert model(depth=depth).taps == taps
    assert model(size_px=(8, 8), depth=depth).predict(batch(1, (8, 8)), steps_noise()).shape == (1, CLASSES, 8, 8)


def test_it_sees_where_it_looked_in_a_picture() -> None:
    painted = model(drop={"policy": "static", "ratio": 0.5})(batch(), steps_noise(), picture=True).picture
    assert painted["kept"].sum(dim=1).tolist() == [12] * 4
    assert painted["predicted_mask"].shape == painted["mask"].shape == (4, 32, 48)


def test_weights_come_from_the_seed() -> None:
    encoder = model().encoder
    settings = RUPerNetSettings(classes=3, width=16)
    first, same, other = (RUPerNet(settings, encoder, seed).head.classify.weight for seed in (0, 0, 1))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="at least 2 classes"):
        model(classes=1)
    with pytest.raises(UserError, match="end with 1"):
        model(taps=(0, 0, 0, 0))
    with pytest.raises(ValidationError, match="the finest first"):
        RUPerNetSettings(scales=(1.0, 2.0))
    with pytest.raises(ValidationError, match="give 4"):
        RUPerNetSettings(taps=(3,))
    with pytest.raises(ValidationError, match="nothing would be learnt"):
        RUPerNetSettings(drop={"policy": "static", "ratio": 0.5, "when": "inference"})
    with pytest.raises(ValidationError, match="2 weights for 3 classes"):
        RUPerNetSettings(classes=3, class_weights=(1.0, 2.0))
