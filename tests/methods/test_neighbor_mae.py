"""NeighborMAE: exactly the kept tokens, the published cost and loss, a lone image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from small_neighbor_mae import SMALL, batch_of, draw, method_of, shifted

from terrasieve import keyed
from terrasieve.bench.contenders import Setup
from terrasieve.bench.flops import gflop_per_image
from terrasieve.methods.neighbor_mae import (
    NeighborMAE,
    NeighborMAESettings,
    corner_embedding,
    mask_ratio,
)
from terrasieve.methods.neighbor_tokens import pool_anchors
from terrasieve.methods.visibility import weighted_loss
from terrasieve.nn.decoder import CrossBlock, DecoderSettings
from terrasieve.nn.packed import Packing, _read_padded, packed_reading
from terrasieve.pretrain import pretrain
from terrasieve.recipe import Recipe
from terrasieve.sieve.ragged import pack, take_ragged
from terrasieve.train.checkpoint import found


@pytest.mark.parametrize("changes", [{}, {"joint": False}, {"images": 3}])
def test_exactly_the_kept_tokens_are_encoded(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    method = method_of(112, **changes)
    boxes = shifted(0.0, 0.3, 1.5)
    if changes.get("images") == 3:
        boxes = torch.cat([boxes, boxes[:, 1:]], dim=1)
    batch = batch_of(boxes, 112)
    K, N = boxes.shape[1], 196
    lengths: list[int] = []
    block = type(method.encoder.vit.blocks[0])
    inner = block.forward

    def watched(self: Any, x: torch.Tensor, *args: Any) -> torch.Tensor:
        lengths.append(x.shape[0])
        return inner(self, x, *args)

    monkeypatch.setattr(block, "forward", watched)
    method(batch, draw())
    counts = [round(N * (1 - float(m))) for m in mask_ratio(boxes[:, :2])]
    assert counts[0] == 29 and counts[2] == 49
    assert lengths == [K * sum(counts) + (3 if method.settings.joint else 3 * K)] * 2
    seen = method.look(batch)
    keep, total = method.choose(seen, batch, torch.rand(3, K * N, generator=draw()))
    assert keep.view(3, K, N).sum(-1).tolist() == [[count] * K for count in counts] and total == keep.sum()


def test_published_cost_and_the_variant_with_fewer_targets() -> None:
    setup = Setup("base", "fp32", "cpu", 224, 2)
    assert gflop_per_image("neighbor_mae", setup) == pytest.approx(60.65, rel=0.01)
    assert gflop_per_image("neighbor_mae_25", setup) < 60.65 / 1.5


def test_the_loss_is_the_published_one(monkeypatch: pytest.MonkeyPatch) -> None:
    method, boxes = method_of(), shifted(0.3, 0.3)
    batch = batch_of(boxes, noise=0.3)
    kept: list[Any] = []
    inner = NeighborMAE._predict_all

    def watched(self: NeighborMAE, seen: Any, encoded: Any, layout: Any, targets: Any, total: Any) -> torch.Tensor:
        kept.append((seen, targets, inner(self, seen, encoded, layout, targets, total)))
        return kept[-1][2]

    monkeypatch.setattr(NeighborMAE, "_predict_all", watched)
    loss = method(batch, draw()).loss
    ((seen, targets, predicted),) = kept
    visible = seen.on_pixels(~targets)
    expected = weighted_loss(seen.pixels_of(predicted), seen.images, visible, batch.boxes, 8)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("changes", [{}, {"joint": False}, {"images": 3}, {"unique": 0.5}])
def test_embeddings_are_the_anchors_encoded_patches(changes: dict[str, Any]) -> None:
    method, boxes = method_of(**changes), shifted(0.3, 1.5, 0.0)
    batch = batch_of(torch.cat([boxes, boxes[:, 1:]], dim=1) if "images" in changes else boxes, noise=0.3)
    output = method(batch, draw())
    seen = method.look(batch)
    keep, total = method.choose(seen, batch, torch.rand(*seen.patches_BMP.shape[:2], generator=draw()))
    encoded, layout, _ = method.encode(seen, keep, total)
    rows_of_group = len(layout) // 3
    for b in range(3):
        inside = [
            token
            for token, row, place in zip(encoded.tokens, layout.rows_T.tolist(), layout.ids_T.tolist(), strict=True)
            if row == b * rows_of_group and place < 64
        ]
        assert len(inside) == int(keep[b, :64].sum())
        torch.testing.assert_close(output.embeddings[b], torch.stack(inside).mean(0), atol=1e-5, rtol=0)  # type: ignore[index]
    output.embeddings.sum().backward()  # type: ignore[union-attr]
    assert method.encoder.vit.blocks[0].attn.qkv.weight.grad.abs().sum() > 0  # type: ignore[union-attr]


def test_an_anchor_without_encoded_patches_has_its_groups_class_token() -> None:
    method, batch = method_of(), batch_of(shifted(0.3, 0.3))
    seen = method.look(batch)
    keep = torch.zeros(2, 128, dtype=torch.bool)
    keep[0, :5] = keep[1, 64:69] = True
    encoded, layout, _ = method.encode(seen, keep, 10)
    pooled = pool_anchors(encoded, layout, 2, 64)
    torch.testing.assert_close(pooled[0], encoded.tokens[:5].mean(0))
    torch.testing.assert_close(pooled[1], encoded.cls_BD[1])


def test_a_lone_image_is_what_the_exported_encoder_makes_of_it() -> None:
    method = method_of(bands=5)
    with torch.no_grad():
        method.slots.token.normal_(generator=keyed.generator(0, "slots"))
    image = torch.randn(2, 5, 64, 64, generator=draw())
    batch = replace(batch_of(shifted(0.0, 0.0), bands=5), image=image, neighbours=None, boxes=None, overlap=())
    with torch.no_grad():
        seen = method.look(batch)
        alone, _, _ = method.encode(seen, torch.ones(2, 64, dtype=torch.bool), 128)
        state = dict(method.state_dict())
        vit = method.encoder.vit
        vit.load_state_dict(vit.state_dict() | {"pos_embed": method.lone_positions(state)})
        exported = vit.forward_features(image)
    torch.testing.assert_close(alone.cls_BD, exported[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(alone.tokens.view(2, 64, -1), exported[:, 1:], atol=1e-5, rtol=0)
    assert not torch.allclose(exported[:, 1:], method_of(bands=5).encoder.encode(image)[:, 1:], atol=1e-2)


def test_a_run_leaves_the_positions_of_a_lone_image(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    settings = tiny(steps=3, method={"name": "neighbor_mae", "decoder": SMALL}, pairs={"kinds": ["near"]})
    pretrain(settings, tmp_path / "run")
    weights = load_file(tmp_path / "run" / "weights.safetensors")
    slots = torch.load(found(tmp_path / "run" / "checkpoints")[-1][1], weights_only=True)["model"]["slots.token"]
    side = torch.linspace(0, 32, 5)
    grid = [[side[c], 32 - side[r], side[c + 1], 32 - side[r + 1]] for r in range(4) for c in range(4)]
    torch.testing.assert_close(weights["pos_embed"][0, 1:], corner_embedding(torch.tensor(grid), 192) + slots[0])
    assert not weights["pos_embed"][0, 0].any()


def test_joint_attention_looks_at_the_neighbour_and_the_ablation_does_not() -> None:
    for joint in (True, False):
        method, batch = method_of(joint=joint), batch_of(shifted(0.4))
        assert batch.neighbours is not None
        other = replace(batch, neighbours=batch.neighbours.roll(5, -1))
        keep = torch.rand(1, 128, generator=draw()) < 0.25
        with torch.no_grad():
            first, second = (method.encode(method.look(b), keep, int(keep.sum()))[0].tokens for b in (batch, other))
        own = int(keep[0, :64].sum())
        assert torch.equal(first[:own], second[:own]) != joint
        assert not torch.equal(first[own:], second[own:])


def test_packed_cross_attention_is_attention_image_by_image() -> None:
    block = CrossBlock(DecoderSettings(depth=1, width=32, heads=4), 24)
    keep = torch.rand(3, 20, generator=draw()) < 0.4
    layout = pack(keep)
    context, cls = torch.randn(3, 20, 24, generator=draw()), torch.randn(3, 24, generator=draw())
    packing = Packing.of(layout, 20)
    x = torch.randn(3, 7, 32, generator=draw())
    packed = block(x, packing.join(cls, take_ragged(context, layout)), packing)
    for row in range(3):
        alone = block(x[row : row + 1], torch.cat([cls[row : row + 1], context[row, keep[row]]])[None])
        torch.testing.assert_close(packed[row : row + 1], alone, atol=1e-6, rtol=1e-5)
    q = torch.randn(3, 4, 7, 8, generator=draw())
    k, v = torch.randn(2, len(packing.rows_S), 4, 8, generator=draw()).unbind()
    torch.testing.assert_close(_read_padded(q, k, v, packing), packed_reading(q, k, v, packing), atol=1e-6, rtol=1e-5)


def test_mistakes_are_named() -> None:
    for changes, words in (
        ({"predict": 0.9}, "predict 0.9 is more than the masked share 0.75"),
        ({"policy": "hog"}, "one number twice"),
        ({"joint": False, "predict": 0.2}, "need joint: true"),
        ({"decoder": {"width": 36, "heads": 4}}, "36 is not a multiple of 8"),
        ({"images": 1}, "greater than or equal to 2"),
    ):
        with pytest.raises(ValidationError, match=words):
            NeighborMAESettings(**changes)  # type: ignore[arg-type]
