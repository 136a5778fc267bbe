"""Detection metrics against pycocotools, a naive VOC, and cases whose value is known by heart."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
import shapely
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from terrasieve.boxes.oriented import corners, from_horizontal
from terrasieve.errors import UserError
from terrasieve.evaluate.average_precision import CROWD, DIFFICULT, Objects, average_precision, match
from terrasieve.evaluate.detect import METRICS, matched, score, values
from terrasieve.evaluate.resampled import Made

CLASSES = 3


def scenes(seed: int, images: int = 25, flags: tuple[int, ...] = (0, 0, 0, 2)) -> tuple[list[Objects], list[Objects]]:
    """Detections and objects: half of the detections are shaken objects; scores have ties."""
    draw = np.random.Generator(np.random.Philox(seed))
    found, truth = [], []
    for _ in range(images):
        count = int(draw.integers(0, 12))
        low = draw.uniform(0, 80, (count, 2))
        boxes = np.concatenate([low, low + draw.uniform(3, 40, (count, 2))], 1)
        classes = draw.integers(0, CLASSES, count)
        truth.append(Objects(*map(torch.from_numpy, (boxes, classes, draw.choice(flags, count)))))
        chosen = draw.integers(0, count, 2 * count) if count else np.zeros(0, int)
        shaken = boxes[chosen] + draw.normal(0, 2, (len(chosen), 4))
        shaken[:, 2:] = np.maximum(shaken[:, 2:], shaken[:, :2] + 1)
        wild = np.concatenate([low := draw.uniform(0, 80, (6, 2)), low + draw.uniform(3, 40, (6, 2))], 1)
        said = np.concatenate([shaken, wild])
        names = np.concatenate([classes[chosen], draw.integers(0, CLASSES, 6)])
        found.append(Objects(*map(torch.from_numpy, (said, names, draw.uniform(0, 1, len(said)).round(1)))))
    return found, truth


def by_pycocotools(found: list[Objects], truth: list[Objects]) -> dict[str, float]:
    def xywh(boxes: Tensor) -> list[list[float]]:
        return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()

    annotations: list[dict[str, Any]] = []
    for image, true in enumerate(truth):
        for box, number, flag in zip(xywh(true.boxes), true.classes.tolist(), true.values.tolist(), strict=True):
            extra = {"area": box[2] * box[3], "iscrowd": int(flag == CROWD), "id": len(annotations) + 1}
            annotations.append({"image_id": image, "category_id": number, "bbox": box, **extra})
    results = [
        {"image_id": image, "category_id": number, "bbox": box, "score": value}
        for image, said in enumerate(found)
        for box, number, value in zip(xywh(said.boxes), said.classes.tolist(), said.values.tolist(), strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": image} for image in range(len(truth))],
            "annotations": annotations,
            "categories": [{"id": number} for number in range(CLASSES)],
        }
        coco.createIndex()
        oracle = COCOeval(coco, coco.loadRes(results), "bbox")
        oracle.evaluate()
        oracle.accumulate()
        oracle.summarize()
    return {"ap50_95": oracle.stats[0], "ap50": oracle.stats[1], "ap75": oracle.stats[2]}


@pytest.mark.parametrize("seed", range(6))
def test_coco_values_are_those_of_pycocotools(seed: int) -> None:
    found, truth = scenes(seed)
    own = values(matched(found, truth, CLASSES))
    for name, expected in by_pycocotools(found, truth).items():
        assert own[name] == pytest.approx(expected, abs=1e-9), name
    assert 0.1 < own["ap50"] < 0.9


def test_only_a_hundred_detections_of_an_image_and_class_are_looked_at() -> None:
    found, truth = scenes(1, images=4)
    draw = np.random.Generator(np.random.Philox(2))
    low = torch.from_numpy(draw.uniform(0, 80, (400, 2)))
    many = Objects(
        torch.cat([low, low + 20], 1), torch.zeros(400, dtype=torch.long), torch.from_numpy(draw.uniform(0, 1, 400))
    )
    found[0] = Objects(*(torch.cat(pair) for pair in zip(many, found[0], strict=True)))
    own = values(matched(found, truth, CLASSES))
    for name, expected in by_pycocotools(found, truth).items():
        assert own[name] == pytest.approx(expected, abs=1e-9), name


def naive_voc(found: list[Objects], truth: list[Objects], number: int, eleven: bool) -> float:
    """The devkit's loop, with shapely's overlap."""

    def shape(box: Tensor) -> Any:
        return shapely.Polygon(corners(box).numpy()) if len(box) == 5 else shapely.box(*box.tolist())

    ranked = [
        (float(said.values[row]), image, said.boxes[row])
        for image, said in enumerate(found)
        for row in range(len(said.boxes))
        if said.classes[row] == number
    ]
    ranked.sort(key=lambda entry: -entry[0])
    taken, right, wrong, curve = set[tuple[int, int]](), 0, 0, []
    total = sum(int(((t.classes == number) & (t.values == 0)).sum()) for t in truth)
    for _, image, box in ranked:
        best, most = -1, -1.0
        for row in range(len(truth[image].boxes)):
            if truth[image].classes[row] == number:
                a, b = shape(box), shape(truth[image].boxes[row])
                overlap = a.intersection(b).area / a.union(b).area
                best, most = (row, overlap) if overlap > most else (best, most)
        if most > 0.5 and truth[image].values[best] != 0:
            continue
        hit = most > 0.5 and (image, best) not in taken
        taken.add((image, best) if hit else (-1, -1))
        right, wrong = right + hit, wrong + (not hit)
        curve.append((right / total, right / (right + wrong)))
    if eleven:
        at = [t / 10 for t in range(11)]
        return sum(max([p for r, p in curve if r >= t - 1e-12], default=0.0) for t in at) / 11
    steps = [(r - before, max(p for _, p in curve[k:])) for k, (r, before) in enumerate(
        zip([r for r, _ in curve], [0.0, *(r for r, _ in curve)], strict=False))]  # fmt: skip
    return sum(step * height for step, height in steps)


@pytest.mark.parametrize("oriented", [False, True])
def test_voc_values_are_those_of_the_naive_loop(oriented: bool) -> None:
    found, truth = scenes(9, images=12, flags=(0, 0, 0, DIFFICULT))
    if oriented:
        draw = torch.Generator().manual_seed(0)
        for objects in (found, truth):
            for image, own in enumerate(objects):
                boxes = from_horizontal(own.boxes)
                boxes[:, 4] += 0.3 * torch.rand(len(boxes), generator=draw)
                objects[image] = own._replace(boxes=boxes)
    own = values(matched(found, truth, CLASSES))
    for name, eleven in (("voc07_ap50", True), ("voc12_ap50", False)):
        expected = np.mean([naive_voc(found, truth, number, eleven) for number in range(CLASSES)])
        assert own[name] == pytest.approx(expected, abs=1e-9)


def test_upright_oriented_boxes_score_as_horizontal_ones() -> None:
    found, truth = scenes(4)
    flat = values(matched(found, truth, CLASSES))
    turned = [[o._replace(boxes=from_horizontal(o.boxes)) for o in objects] for objects in (found, truth)]
    for name, value in values(matched(*turned, CLASSES)).items():
        assert value == pytest.approx(flat[name], abs=1e-5), name


def one(boxes: list[list[float]], numbers: list[float], kind: type = float) -> Objects:
    values_ = torch.tensor(numbers, dtype=torch.float64 if kind is float else torch.long)
    return Objects(torch.tensor(boxes).view(-1, 4), torch.zeros(len(boxes), dtype=torch.long), values_)


def test_values_known_by_heart() -> None:
    left, right = [0.0, 0, 10, 10], [20.0, 0, 30, 10]
    truth = [one([left, right], [0, 0], int)]
    both = values(matched([one([left, right], [0.9, 0.8])], truth, 1), ["ship"])
    assert all(value == pytest.approx(1) for value in both.values()) and list(both) == [*METRICS, "ap50/ship"]
    half = values(matched([one([left], [0.9])], truth, 1))
    assert half["ap50"] == pytest.approx(51 / 101) and half["voc07_ap50"] == pytest.approx(6 / 11)
    assert half["voc12_ap50"] == pytest.approx(0.5)
    twice = values(matched([one([left, left, right], [0.9, 0.8, 0.7])], truth, 1))  # a double is a miss
    assert twice["voc12_ap50"] == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert values(matched([one([], [])], truth, 1))["ap50"] == 0
    difficult = [one([left, right], [0, DIFFICULT], int)]
    assert values(matched([one([right, left], [0.9, 0.8])], difficult, 1))["ap50"] == pytest.approx(1)
    crowd = [one([left, [20.0, 0, 60, 40]], [0, CROWD], int)]  # two small ones within a crowd are no misses
    inside = one([[21.0, 1, 25, 5], [30, 9, 35, 12], left], [0.9, 0.8, 0.7])
    assert values(matched([inside], crowd, 1))["ap50"] == pytest.approx(1)
    assert np.isnan(values(matched([one([left], [0.9])], [one([], [], int)], 1))["ap50"])


def test_intervals_hold_the_value_and_need_objects() -> None:
    found, truth = scenes(5)
    scores = score(
        matched(found, truth, CLASSES), ["a", "b", "c"], Made("faster_rcnn", "fine-tuned", 0, {}, resamples=200)
    )
    assert [s.metric for s in scores] == [*METRICS, "ap50/a", "ap50/b", "ap50/c"]
    assert all(s.low < s.value < s.high and s.count == len(truth) for s in scores)
    nothing = [o._replace(values=torch.full_like(o.values, DIFFICULT)) for o in truth]
    with pytest.raises(UserError, match="no object that is counted"):
        score(matched(found, nothing, CLASSES), [], Made("faster_rcnn", "fine-tuned", 0, {}))


def test_weights_of_images_are_repetitions() -> None:
    found, truth = scenes(6, images=8)
    draw = torch.Generator().manual_seed(1)
    found = [o._replace(values=torch.rand(len(o.values), generator=draw, dtype=torch.float64)) for o in found]
    counts = torch.tensor([2.0, 0, 1, 3, 0, 1, 1, 0], dtype=torch.float64)
    rows = [row for row, count in enumerate(counts.long().tolist()) for _ in range(count)]
    for points in (101, 11, None):
        weighted = average_precision(match(found, truth, CLASSES, (0.5,), "coco")[0], 0, counts[None], points)
        repeated = match([found[r] for r in rows], [truth[r] for r in rows], CLASSES, (0.5,), "coco")[0]
        ones = torch.ones(1, len(rows), dtype=torch.float64)
        expected = average_precision(repeated, 0, ones, points).item()
        assert weighted.item() == pytest.approx(expected, abs=1e-12) and 0.1 < expected < 0.9
