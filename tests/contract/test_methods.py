"""Every member of the method union keeps the contract: DESIGN.md, section 5."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch

from terrasieve import keyed
from terrasieve.batch import Batch, Rows
from terrasieve.methods import METHODS, MethodSettings, build
from terrasieve.methods.reconstruction import normalise_patches
from terrasieve.methods.selective_mae import SelectiveMAESettings
from terrasieve.methods.siamese import SiameseSettings
from terrasieve.nn.encoder import Encoder, EncoderSettings
from terrasieve.nn.frames import pair_iou
from terrasieve.nn.patches import patchify, take

SMALL = {"depth": 2, "width": 32, "heads": 4}
MEMBERS = get_args(get_args(MethodSettings)[0])
VARIANTS: list[dict[str, Any]] = [
    {"name": "mae"},
    {"name": "cross_mae"},
    {"name": "cross_mae", "mix": True},
    {"name": "selective_mae"},
    *({"name": "selective_mae", "policy": policy} for policy in ("hog_sampled", "uniform", "random")),
    *({"name": "selective_mae", "targets": targets} for targets in ("hog", "random", "learned")),
    {"name": "selective_mae", "targets": "all", "encode": 0.4},
    {"name": "selective_mae", "order": "far-near-random", "tokens": "content"},
    {"name": "selective_mae", "encode": 0.05, "reconstruct": 0.15},
    {"name": "selective_mae", "key_positions": True},
    {"name": "cross_mae", "mix": True, "key_positions": True},
    {"name": "neighbor_mae"},
    {"name": "neighbor_mae", "images": 3, "frame": "metres", "metres_per_unit": 1.0},
    {"name": "neighbor_mae", "joint": False, "weigh": False},
    {"name": "neighbor_mae", "predict": 0.25, "frame": "isotropic"},
    {"name": "neighbor_mae", "unique": 0.5, "mask": (0.5, 0.6)},
    {"name": "neighbor_mae", "policy": "hog", "mask": (0.75, 0.75), "predict": 0.25},
    {"name": "satmae_pp", "width": 8},
    {"name": "satmae_pp", "width": 8, "scales": 3, "finer": 0.5},
]
variants = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(str(x) for x in v.values()))


def settings_of(variant: dict[str, Any]) -> Any:
    member = next(m for m in MEMBERS if m.model_fields["name"].default == variant["name"])
    return member(**variant, decoder=SMALL)


def method_of(variant: dict[str, Any], size: tuple[int, int] = (32, 48), bands: int = 4) -> Any:
    encoder = Encoder(EncoderSettings(name="vit_tiny_patch16_224", patch_px=8), bands, size)
    return build(settings_of(variant), encoder)


def batch_of(
    count: int = 6, size: tuple[int, int] = (32, 48), progress: float = 0.0, bands: int = 4, images: int = 3
) -> Batch:
    """Random images with ``images`` - 1 neighbours each, which methods that do not ask for them do not see."""
    nowhere = torch.full((count,), torch.nan, dtype=torch.float64)
    draw = keyed.generator(0, "test")
    image = torch.randn(count, bands, *size, generator=draw)
    neighbours = torch.randn(count, images - 1, bands, *size, generator=draw)
    corner = torch.rand(count, images, 2, generator=draw) * 30
    boxes = torch.stack([corner[..., 0], corner[..., 1] + 40, corner[..., 0] + 40, corner[..., 1]], dim=-1)
    return Batch(
        image, nowhere, nowhere, nowhere, torch.arange(count), progress=progress, neighbours=neighbours, boxes=boxes,
        kinds=torch.zeros(count, images - 1, dtype=torch.int64), overlap=tuple(pair_iou(boxes[:, :2]).tolist()),
    )  # fmt: skip


def batch_for(variant: dict[str, Any], count: int = 6, size: tuple[int, int] = (32, 48), **more: Any) -> Batch:
    enlarged = getattr(settings_of(variant), "enlarged", 1)
    return batch_of(count, (size[0] * enlarged, size[1] * enlarged), images=variant.get("images", 2), **more)


def test_every_method_of_the_union_is_tested_and_can_be_built() -> None:
    contrastive = {m.model_fields["name"].default for m in MEMBERS if issubclass(m, SiameseSettings)}
    assert {m.model_fields["name"].default for m in MEMBERS} == set(METHODS)
    assert set(METHODS) - contrastive == {v["name"] for v in VARIANTS}  # the others: test_contrastive


@variants
@pytest.mark.parametrize("progress", [0.0, 0.36, 0.5, 0.74, 0.9])
def test_loss_is_finite_and_every_parameter_learns(variant: dict[str, Any], progress: float) -> None:
    method = method_of(variant)
    output = method(batch_for(variant, progress=progress), keyed.generator(0, "mask", 0))
    assert output.loss.isfinite()
    assert output.embeddings is not None and output.embeddings.shape == (6, 192), "what geography goes with"
    output.loss.backward()
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    touched = [p.grad.abs().sum() > 0 for p in method.parameters() if p.requires_grad and p.ndim > 1]
    assert all(touched)


@variants
def test_same_generator_same_bits(variant: dict[str, Any]) -> None:
    method, batch = method_of(variant), batch_for(variant, progress=0.9)
    losses = [method(batch, keyed.generator(0, "mask", step)).loss for step in (3, 3, 4)]
    assert torch.equal(losses[0], losses[1])
    if variant.get("encode") != 0.05:  # there, two seeds are all that is encoded
        assert not torch.equal(losses[0], losses[2])


@variants
def test_a_batch_in_parts_is_the_batch(variant: dict[str, Any]) -> None:
    """Two micro-batches, or two processes, see the masks of the one global batch."""
    method, whole = method_of(variant), replace(batch_for(variant), rows=Rows(0, 6))
    loss = method(whole, keyed.generator(0, "mask", 5)).loss
    parts = [method(whole.part(i, i + 3), keyed.generator(0, "mask", 5)).loss for i in (0, 3)]
    assert torch.allclose(torch.stack(parts).mean(), loss, atol=1e-6)


COUNTS = [
    ({"name": "mae"}, 49, 147),
    ({"name": "satmae_pp"}, 49, 147),
    ({"name": "cross_mae"}, 49, 49),
    ({"name": "selective_mae"}, 29, 49),
    ({"name": "selective_mae", "policy": "random"}, 29, 49),
    ({"name": "selective_mae", "targets": "all"}, 29, 167),
]


@pytest.mark.parametrize(("variant", "encoded", "predicted"), COUNTS)
@pytest.mark.parametrize("progress", [0.0, 0.36, 0.74, 0.99])
def test_token_counts_are_the_papers(variant: dict[str, Any], encoded: int, predicted: int, progress: float) -> None:
    method = method_of(variant, (112, 112), 3)
    batch = batch_of(2, (112, 112), progress, 3)
    with torch.no_grad():
        chosen = method.select(batch, patchify(batch.image, 8), draw())
    assert (method.encoder.patches, chosen.kept_BK.shape[1], chosen.targets_BM.shape[1]) == (196, encoded, predicted)
    for row in range(2):
        kept, targets = set(chosen.kept_BK[row].tolist()), set(chosen.targets_BM[row].tolist())
        assert not kept & targets
        assert len(kept) == chosen.kept_BK.shape[1]
        assert len(targets) == chosen.targets_BM.shape[1]


def draw() -> torch.Generator:
    return keyed.generator(0, "mask", 0)


def test_selective_mae_at_196_patches_has_14_seeds_then_7_and_8() -> None:
    encoder = Encoder(EncoderSettings(name="vit_tiny_patch16_224", patch_px=16), 3, (224, 224))
    method = build(SelectiveMAESettings(), encoder)
    assert (method.seeds, method.rounds, method.predicted) == (14, (7, 8), 49)
    assert method.lr_scale == pytest.approx(0.25 / 0.85)


def test_selective_mae_encodes_the_rich_and_predicts_the_richest_of_the_rest() -> None:
    from terrasieve.sieve.richness import hog_energy

    method, batch = method_of({"name": "selective_mae"}), batch_of(3)
    chosen = method.select(batch, patchify(batch.image, 8), draw())
    richness = hog_energy(batch.image, 8)
    for row in range(3):
        order = richness[row].argsort(descending=True).tolist()
        kept = chosen.kept_BK[row].tolist()
        assert set(order[: method.seeds]) <= set(kept)
        rest = [i for i in order if i not in kept]
        assert set(chosen.targets_BM[row].tolist()) == set(rest[: method.predicted])


def test_mae_loss_is_an_independent_computation() -> None:
    """The mean over masked patches of the squared difference to (x - mean) / sqrt(var + 1e-6), written as a loop."""
    method, batch = method_of({"name": "mae"}), batch_of(2)
    with torch.no_grad():
        output = method(batch, draw(), picture=True)
        patches = patchify(batch.image, 8)
        chosen = method.select(batch, patches, draw())
        tokens = method.encoder(take(patches, chosen.kept_BK), chosen.kept_BK)
        predicted = method.decoder(tokens, *chosen)
    total, count = 0.0, 0
    for row in range(2):
        for place, patch_id in enumerate(chosen.targets_BM[row].tolist()):
            top, left = divmod(patch_id, 6)
            pixels = batch.image[row, :, top * 8 : top * 8 + 8, left * 8 : left * 8 + 8].flatten().double()
            target = (pixels - pixels.mean()) / (pixels.var(unbiased=True) + 1e-6).sqrt()
            total += float((predicted[row, place].double() - target).square().mean())
            count += 1
    assert float(output.loss) == pytest.approx(total / count, rel=1e-5)


def test_pixels_without_data_have_no_say() -> None:
    method = method_of({"name": "mae"})
    valid = torch.ones(6, 32, 48, dtype=torch.bool)
    valid[:, :, 20:] = False
    batch = batch_of()
    image = torch.where(valid[:, None], batch.image, 0.0)
    other = torch.where(valid[:, None], batch.image, 7.0)
    patches = patchify(image, 8)
    weight = patchify(valid[:, None].float(), 8).repeat(1, 1, 4)
    a = normalise_patches(patches, weight) * weight
    b = normalise_patches(patchify(other, 8), weight) * weight
    assert torch.allclose(a, b, atol=1e-5)
    assert method(replace(batch, image=image, valid=valid), draw()).loss.isfinite()
    rich = method_of({"name": "selective_mae"})
    chosen = rich.select(replace(batch, image=image, valid=valid), patches, draw())
    assert (chosen.kept_BK[:, : rich.seeds] % 6 <= 2).all(), "seeds stand on real ground"


@pytest.mark.slow
@variants
def test_overfits_eight_chips(variant: dict[str, Any]) -> None:
    method, batch = method_of(variant, (32, 32)), batch_for(variant, 8, (32, 32))
    assert batch.neighbours is not None
    whole = torch.cat([batch.image, batch.neighbours.flatten(0, 1)])
    reach = 4 * whole.shape[-1] // 32
    smooth = torch.nn.functional.avg_pool2d(whole, 2 * reach + 1, 1, reach)  # noise cannot be predicted, ground can
    image, others = (smooth / smooth[:8].std()).split([8, len(whole) - 8])
    batch = replace(batch, image=image, neighbours=others.view_as(batch.neighbours), progress=0.0)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=2e-3)
    first = last = 0.0
    for step in range(130):
        output = method(batch, keyed.generator(0, "mask", 0))
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        value = float(output.metrics.get("reconstruction", output.loss.detach()))
        first, last = (value, value) if step == 0 else (first, value)
    assert last < 0.65 * first
