"""The detectors: they learn eight scenes, whatever divides a step, and their loss is torchvision's."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import shapely
import torch
from torch import Tensor

from terrasieve import keyed, methods
from terrasieve.batch import Batch, Rows
from terrasieve.boxes.oriented import bounds, corners, rectangle
from terrasieve.errors import UserError
from terrasieve.evaluate.detect import matched, of_detections, of_truth, values
from terrasieve.methods import faster_rcnn, oriented_stages
from terrasieve.methods.detector import without_covered
from terrasieve.methods.faster_rcnn import FasterRCNN, FasterRCNNSettings
from terrasieve.methods.oriented_rcnn import OrientedRCNN, OrientedRCNNSettings
from terrasieve.methods.sampled import Sampler
from terrasieve.nn.encoder import Encoder, EncoderSettings

SIZE = 64
SMALL: dict[str, Any] = {
    "width": 32, "hidden": 64, "scales": (2, 1), "anchor_cells": 4, "proposals": 60, "sampled": (64, 32), "classes": 2
}  # fmt: skip


def scenes(count: int, seed: int = 0) -> Batch:
    """Bright turned rectangles of two shapes on dark ground; the last image is empty."""
    draw = np.random.Generator(np.random.Philox(seed))
    y, x = (torch.from_numpy(v).float() + 0.5 for v in np.mgrid[:SIZE, :SIZE])
    image = torch.zeros(count, 3, SIZE, SIZE)
    boxes = torch.zeros(count, 2, 5)
    classes = torch.full((count, 2), -1)
    for row in range(count - 1):
        for place in range(2):
            number = int(draw.integers(2))
            w, h = ((26.0, 8.0), (14.0, 13.0))[number]
            cx, cy, angle = 16 + 32 * place + draw.uniform(-1, 1), draw.uniform(16, 48), draw.uniform(-1.5, 1.5)
            along = (x - cx) * math.cos(angle) + (y - cy) * math.sin(angle)
            across = (y - cy) * math.cos(angle) - (x - cx) * math.sin(angle)
            image[row, number][(along.abs() < w / 2) & (across.abs() < h / 2)] = 2
            boxes[row, place] = torch.tensor([cx, cy, w, h, angle])
            classes[row, place] = number
    nan = torch.full((count,), math.nan, dtype=torch.float64)
    return Batch(image, nan, nan, nan, torch.arange(count), objects=corners(boxes), object_classes=classes,
                 rows=Rows(0, count))  # fmt: skip


def built(oriented: bool, seed: int = 0, **changes: Any) -> FasterRCNN | OrientedRCNN:
    encoder = Encoder(EncoderSettings(name="vit_tiny_patch16_224", patch_px=8, depth=2), 3, (SIZE, SIZE), seed)
    kind = OrientedRCNNSettings if oriented else FasterRCNNSettings
    model = methods.build(kind(**(SMALL | changes)), encoder, seed)
    assert isinstance(model, FasterRCNN | OrientedRCNN)
    return model


def stream(step: int = 0) -> torch.Generator:
    return keyed.generator(0, "mask", step)


@pytest.mark.parametrize("oriented", [False, True])
def test_a_step_is_finite_and_reaches_every_weight(oriented: bool) -> None:
    model, batch = built(oriented), scenes(4)
    output = model(batch, stream())
    output.loss.backward()
    assert output.loss.isfinite() and output.loss > 0
    parts = [v for name, v in output.metrics.items() if name.startswith("loss_")]
    assert len(parts) == 4 and torch.allclose(sum(parts), output.loss.detach())
    lacking = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert lacking == []
    assert torch.equal(model(batch, stream()).loss, output.loss) and not torch.equal(
        model(batch, stream(1)).loss, output.loss
    )


@pytest.mark.parametrize("oriented", [False, True])
def test_images_without_objects(oriented: bool) -> None:
    model, batch = built(oriented), scenes(1)
    output = model(batch, stream())
    assert output.loss.isfinite() and output.metrics["loss_box_reg"] == 0
    assert batch.objects is not None and batch.object_classes is not None
    none = Batch(batch.image, batch.lon, batch.lat, batch.time, batch.index, objects=batch.objects[:, :0],
                 object_classes=batch.object_classes[:, :0])  # fmt: skip
    assert torch.equal(model(none, stream()).metrics["loss_objectness"], output.metrics["loss_objectness"])


def test_samples_do_not_depend_on_how_the_batch_is_divided() -> None:
    model, batch = built(False), scenes(4)
    seen: list[Tensor] = []
    for part in (batch, batch.part(0, 2), batch.part(2, 4)):
        model(part, stream())
        assert isinstance(model, FasterRCNN)
        seen.append(model.rpn.fg_bg_sampler.noise_BA)
    assert torch.equal(seen[0], torch.cat(seen[1:]))


def share_by_loops(box: Tensor, others: Tensor) -> float:
    """The largest share of a box's own area that one of others covers."""
    outline, *rest = (
        shapely.Polygon((rectangle(one) if len(one) == 4 else corners(one.double())).tolist()) for one in (box, *others)
    )
    return max((outline.intersection(other).area / outline.area for other in rest), default=0.0)


class Spied(Sampler):
    """Keeps the labels that it is given."""

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        self.labels = [label.clone() for label in labels]
        return super().__call__(labels)


@pytest.mark.parametrize("oriented", [False, True])
def test_what_difficult_objects_cover_is_neither_object_nor_background(
    oriented: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels are those of the same image without its difficult objects, but for what these cover, by loops."""
    model, batch = built(oriented, ignored=0.4), scenes(3)
    assert batch.objects is not None and batch.object_classes is not None
    difficult = torch.tensor([[False, True], [True, True], [True, True]])  # the last image has no object at all
    looked_at: list[tuple[Tensor, Tensor]] = []

    def recorded(labels: Tensor, boxes: Tensor, others: Tensor, share: float) -> Tensor:
        looked_at.append((boxes, others))
        return without_covered(labels, boxes, others, share)

    for module in (faster_rcnn, oriented_stages):
        monkeypatch.setattr(module, "without_covered", recorded)
    labels = []
    for there in (False, True):
        name = "sampler" if oriented else "fg_bg_sampler"
        spied = [Spied(count, share) for count, share in ((64, 0.5), (32, 0.25))]
        for stage, sampler in zip((model.rpn, model.roi), spied, strict=True):
            setattr(stage, name, sampler)
        numbers = batch.object_classes if there else batch.object_classes.masked_fill(difficult, -1)
        given = replace(batch, object_classes=numbers, object_difficult=difficult)
        assert model(given, stream()).loss.isfinite()
        labels.append([*spied[0].labels, *spied[1].labels])
    before, after = looked_at[:6], looked_at[6:]
    covered_boxes = 0
    for without, found, (boxes, none), (same, others) in zip(*labels, before, after, strict=True):
        assert torch.equal(boxes, same) and len(none) == 0
        covered = torch.tensor([share_by_loops(box, others) for box in boxes.detach()])
        certain = (covered - 0.4).abs() > 1e-4
        expected = torch.where(covered >= 0.4, -1, without[: len(boxes)])
        assert torch.equal(found[: len(boxes)][certain].long(), expected[certain].long())
        assert torch.equal(found[len(boxes) :], without[len(boxes) :]), (
            "true boxes are learnt from whatever covers them"
        )
        covered_boxes += int((covered >= 0.4).sum())
    assert [len(others) for _, others in after] == [1, 2, 0, 1, 2, 0] and covered_boxes > 20


@pytest.mark.parametrize("oriented", [False, True])
def test_a_step_in_which_a_crowd_covers_everything_is_finite(oriented: bool) -> None:
    model, batch = built(oriented, ignored=0.01), scenes(2).part(0, 1)
    assert batch.objects is not None and batch.object_classes is not None
    everywhere = rectangle(torch.tensor([-500.0, -500, 600, 600])).expand(1, 2, 4, 2)
    crowd = replace(batch, objects=everywhere, object_difficult=torch.ones(1, 2, dtype=torch.bool))
    output = model(crowd, stream())
    output.loss.backward()
    assert output.loss == 0 and all(p.grad is None or (p.grad == 0).all() for p in model.parameters())
    plain = replace(batch, object_difficult=torch.zeros(1, 2, dtype=torch.bool))
    assert torch.equal(model(plain, stream()).loss, model(batch, stream()).loss)


def test_sampler_draws_what_torchvision_would() -> None:
    sampler = Sampler(20, 0.5)
    labels = [torch.tensor([1] * 30 + [0] * 40 + [-1] * 30), torch.tensor([2] * 3 + [0] * 97), torch.tensor([0] * 5)]
    sampler.noise_BA = torch.rand(3, 120, generator=torch.Generator().manual_seed(0))
    positive, negative = sampler(labels)
    assert [int(flags.sum()) for flags in positive] == [10, 3, 0]
    assert [int(flags.sum()) for flags in negative] == [10, 17, 5]
    for flags, others, label in zip(positive, negative, labels, strict=True):
        assert (label[flags] >= 1).all() and (label[others] == 0).all()


@pytest.mark.parametrize("oriented", [False, True])
def test_predictions_are_padded_detections(oriented: bool) -> None:
    model, batch = built(oriented, least_score=0.01, most=7).eval(), scenes(3)
    with torch.no_grad():
        found = model.predict(batch, stream())
        picture = model(batch, stream(), picture=True).picture
    assert found.shape == (3, 7, 7 if oriented else 6)
    there = found[..., -1] >= 0
    assert there.any() and (found[..., -2][there] > 0.01).all() and found[..., -1].max() < 2
    assert (found[..., -2].diff(dim=1)[there[:, 1:]] <= 0).all(), "best first"
    assert picture["found"].shape == (3, 7, 4, 2) and picture["objects"].shape == (3, 2, 4, 2)


@pytest.mark.parametrize("fill", ["learned", "bilinear"])
def test_redundant_patches_are_left_out(fill: str) -> None:
    model = built(True, drop={"policy": "static", "ratio": 0.5}, fill=fill)
    output = model(scenes(2), stream())
    output.loss.backward()
    assert output.metrics["kept_share"] == 0.5 and output.loss.isfinite()


@pytest.mark.slow
@pytest.mark.parametrize("oriented", [False, True])
def test_eight_scenes_are_learnt_by_heart(oriented: bool) -> None:
    model, batch = built(oriented), scenes(8)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(100):
        optimiser.zero_grad()
        model(batch, stream(step)).loss.backward()
        optimiser.step()
    model.eval()
    with torch.no_grad():
        found = model.predict(batch, stream())
    assert batch.objects is not None and batch.object_classes is not None
    truth = [
        of_truth(
            polygons[numbers >= 0], numbers[numbers >= 0], torch.zeros(int((numbers >= 0).sum())).bool(), 4 + oriented
        )
        for polygons, numbers in zip(batch.objects, batch.object_classes, strict=True)
    ]
    assert values(matched([of_detections(own) for own in found], truth, 2))["ap50"] > 0.8


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="at least one class"):
        built(False, classes=0)
    for changes, words in (
        ({"scales": (4, 1)}, "half of the one before"),
        ({"class_weights": (1.0, 2.0)}, "do not weight classes"),
        ({"drop": {"policy": "static", "ratio": 0.5, "when": "inference"}}, "nothing would be learnt"),
    ):
        with pytest.raises(ValueError, match=words):
            FasterRCNNSettings(**(SMALL | changes))
    assert bounds(torch.tensor([[0.0, 1], [2, 3]])).tolist() == [0, 1, 2, 3]
