"""Oriented boxes: canonical form, polygons, overlap against shapely, suppression against the naive loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
import torch
import torchvision
from torch import Tensor

from terrasieve.boxes.oriented import bounds, canonical, corners, enclosing, from_horizontal, from_polygons, rectangle
from terrasieve.boxes.overlap import covered, iou, iou_of_pairs
from terrasieve.boxes.suppress import suppress


def drawn(n: int, seed: int, span_px: float = 60, largest_px: float = 80) -> Tensor:
    """Boxes of any size and angle, some of them thin, some of zero area."""
    draw = np.random.Generator(np.random.Philox(seed))
    size = draw.uniform(0, largest_px, (n, 2)) * draw.choice([1, 1, 1, 0.01, 0], (n, 2), p=[0.3, 0.3, 0.3, 0.08, 0.02])
    boxes = np.concatenate([draw.uniform(0, span_px, (n, 2)), size, draw.uniform(-4, 4, (n, 1))], 1)
    return torch.from_numpy(boxes)


def by_shapely(a: Tensor, b: Tensor) -> np.ndarray:
    one, other = (shapely.polygons(corners(boxes).numpy()) for boxes in (a, b))
    common = shapely.area(shapely.intersection(one, other))
    union = shapely.area(one) + shapely.area(other) - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_canonical_boxes_are_the_same_rectangles(dtype: torch.dtype) -> None:
    boxes = drawn(5000, 1).to(dtype)
    edge = torch.tensor([math.pi / 2, -math.pi / 2, -1e-9, 1e-9, math.pi, 0.0, -3 * math.pi / 2], dtype=dtype)
    square = torch.tensor([[5.0, 5, 4, 4, 0], [5, 5, 2, 6, 0]], dtype=dtype).repeat_interleave(len(edge), 0)
    square[:, 4] = edge.repeat(2)
    boxes = torch.cat([boxes, square])
    found = canonical(boxes)
    assert (found[:, 2] >= found[:, 3]).all()
    assert (found[:, 4] >= torch.tensor(-math.pi / 2, dtype=dtype)).all() and (found[:, 4] < math.pi / 2).all()
    assert torch.equal(canonical(found), found)
    apart = torch.cdist(corners(boxes), corners(found)).amin(-1)  # each corner is a corner still
    assert apart.max() < (1e-3 if dtype is torch.float32 else 1e-6)


def test_polygons_give_their_boxes_back() -> None:
    boxes = canonical(drawn(5000, 2))
    boxes = boxes[boxes[:, 3] > 1e-3]
    turned = torch.stack([c.roll(k % 4, 0) for k, c in enumerate(corners(boxes))])  # any corner may come first
    turned[1::2] = turned[1::2].flip(1)  # and either way around
    found = from_polygons(turned)
    assert (found[:, :4] - boxes[:, :4]).abs().max() < 1e-9
    assert (iou_of_pairs(found, boxes) > 1 - 1e-4).all()
    assert torch.allclose(enclosing(boxes), bounds(corners(boxes)))
    flat = torch.tensor([[0.0, 0, 3, 3, 3, 3, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]]).view(2, 4, 2)
    found = from_polygons(flat)
    assert torch.allclose(found[0], torch.tensor([1.5, 1.5, math.sqrt(18), 0, math.pi / 4]), atol=1e-6)
    assert found[1].tolist()[:4] == [1, 1, 0, 0]


def test_smallest_rectangle_is_shapelys() -> None:
    draw = np.random.Generator(np.random.Philox(3))
    quads = draw.uniform(0, 50, (300, 4, 2))
    hulls = shapely.convex_hull(shapely.multipoints(quads))
    convex = shapely.get_num_coordinates(hulls) == 5
    quads = np.stack([shapely.get_coordinates(hull)[:4] for hull in hulls[convex]])
    expected = shapely.area(shapely.minimum_rotated_rectangle(shapely.polygons(quads)))
    found = from_polygons(torch.from_numpy(quads))
    np.testing.assert_allclose((found[:, 2] * found[:, 3]).numpy(), expected, rtol=1e-9)
    around = shapely.buffer(shapely.polygons(corners(found).numpy()), 1e-6)
    assert shapely.contains(around, shapely.polygons(quads)).all()


@pytest.mark.parametrize("upright", [False, True])
def test_covered_is_the_largest_share_of_a_boxs_own_area(upright: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("terrasieve.boxes.overlap.CHUNK_PAIRS", 100)
    boxes, others = (drawn(60, 1), drawn(9, 2, largest_px=40))
    boxes, others = (bounds(corners(each)) if upright else each for each in (boxes, others))
    found = covered(boxes, others)
    for box, value in zip(boxes, found.tolist(), strict=True):
        one, *rest = (shapely.Polygon(rectangle(b) if upright else corners(b)) for b in (box, *others))
        shares = [one.intersection(other).area / one.area if one.area else 0.0 for other in rest]
        assert value == pytest.approx(max(shares), abs=1e-5)
    assert (found > 0.5).any() and (found == 0).any()
    assert covered(boxes, others[:0]).tolist() == [0.0] * 60 and len(covered(boxes[:0], others)) == 0


def test_overlap_is_shapelys_on_100_000_pairs() -> None:
    a, b = drawn(100_000, 4), drawn(100_000, 5)
    b[:1000], b[1000:2000] = a[:1000], canonical(a[1000:2000])  # identical, and the same written otherwise
    found = iou_of_pairs(a, b).numpy()
    assert np.abs(found - by_shapely(a, b)).max() < 1e-4
    assert found.max() <= 1 and found.min() >= 0 and (found > 0.01).mean() > 0.3
    single, other = a[:10_000].float(), b[:10_000].float()
    assert np.abs(iou_of_pairs(single, other).numpy() - by_shapely(single.double(), other.double())).max() < 1e-4


@pytest.mark.parametrize("turn", [0.0, 0.3, math.pi / 2, -2.0])
@pytest.mark.parametrize("shift", [0.0, 1e5])
def test_overlap_of_degenerate_boxes(turn: float, shift: float) -> None:
    cases = [  # a, b, intersection over union
        ([0, 0, 4, 2, 0], [0, 0, 4, 2, 0], 1),
        ([0, 0, 4, 2, 0], [0, 0, 2, 4, math.pi / 2], 1),
        ([0, 0, 4, 2, 0], [0, 0, 4, 2, math.pi], 1),
        ([0, 0, 4, 2, 0], [0, 0, 4, 2, math.pi / 2], 4 / 12),
        ([0, 0, 4, 2, 0], [4, 0, 4, 2, 0], 0),  # a common edge
        ([0, 0, 4, 2, 0], [4, 2, 4, 2, 0], 0),  # a common corner
        ([0, 0, 4, 2, 0], [3, 0, 2, 2, math.pi / 4], None),
        ([0, 0, 4, 4, 0], [0, 0, 2, 2, math.pi / 4], 4 / 16),  # contained
        ([0, 0, 4, 4, 0], [0, 0, 4, 2, 0], 0.5),  # contained, edges in common
        ([0, 0, 4, 4, 0], [1, 1, 2, 2, 0], 4 / 16),  # contained, in a corner
        ([0, 0, 2, 2, 0], [0, 0, 2, 2, math.pi / 4], (8 * math.sqrt(2) - 8) / (16 - 8 * math.sqrt(2))),  # an octagon
        ([0, 0, 4, 0, 0], [0, 0, 4, 2, 0], 0),
        ([0, 0, 4, 0, 0], [0, 0, 4, 0, 0], 0),
        ([0, 0, 0, 0, 0], [0, 0, 0, 0, 0], 0),
        ([0, 0, 1000, 1e-3, 0], [0, 0, 1000, 1e-3, 0], 1),
        ([0, 0, 1000, 1, 0], [0, 0, 1000, 1, 1e-9], 1),
    ]
    a, b = (torch.tensor([case[side] for case in cases], dtype=torch.float64) for side in (0, 1))
    for boxes in (a, b):  # the whole scene turned and moved
        x, y = boxes[:, 0].clone(), boxes[:, 1].clone()
        boxes[:, 0], boxes[:, 1] = x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)
        boxes[:, :2] += shift
        boxes[:, 4] += turn
    expected = np.where([case[2] is None for case in cases], by_shapely(a, b), [case[2] or 0.0 for case in cases])
    for one, other in ((a, b), (b, a)):
        np.testing.assert_allclose(iou_of_pairs(one, other).numpy(), expected, atol=1e-4)
    np.testing.assert_allclose(iou(a, b).diagonal().numpy(), expected, atol=1e-4)


def test_overlap_of_all_pairs_is_torchvisions() -> None:
    a, b = drawn(300, 6).float(), drawn(200, 7).float()
    a, b = a[a[:, 2:4].amin(1) > 1], b[b[:, 2:4].amin(1) > 1]
    degrees = [torch.cat([boxes[:, :4], -torch.rad2deg(boxes[:, 4:])], 1) for boxes in (a, b)]
    expected = torchvision.ops.box_iou(*degrees, fmt="cxcywhr")
    assert (iou(a, b) - expected).abs().max() < 1e-4
    assert iou(a, b[:0]).shape == (len(a), 0) and iou(a[:0], b).shape == (0, len(b))
    flat = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)) * 50
    flat = torch.cat([flat, flat + 20], 1)
    assert (iou(from_horizontal(flat), from_horizontal(flat)) - torchvision.ops.box_iou(flat, flat)).abs().max() < 1e-5
    assert torch.allclose(bounds(rectangle(flat)), flat)


def naive(boxes: Tensor, scores: Tensor, threshold: float, classes: Tensor) -> list[int]:
    overlaps, kept = iou(boxes.double(), boxes.double()).numpy(), list[int]()
    for row in sorted(range(len(boxes)), key=lambda r: -float(scores[r])):
        if not any(overlaps[row, k] > threshold for k in kept if classes[k] == classes[row]):
            kept.append(row)
    return kept


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.8])
def test_suppression_is_the_naive_loop(threshold: float) -> None:
    boxes = torch.cat([drawn(120, 8), drawn(150, 9, span_px=300)]).float()
    boxes = torch.cat([boxes, boxes[:50]])  # twins
    draw = torch.Generator().manual_seed(1)
    scores = torch.rand(len(boxes), generator=draw).mul(50).round() / 50  # with ties
    for classes in (torch.zeros(len(boxes), dtype=torch.long), torch.randint(0, 3, (len(boxes),), generator=draw)):
        expected = naive(boxes, scores, threshold, classes)
        assert suppress(boxes, scores, threshold, classes).tolist() == expected
        assert 0 < len(expected) < len(boxes)
    assert suppress(boxes[:0], scores[:0], threshold).tolist() == []
