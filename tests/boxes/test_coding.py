"""Codes of boxes: there and back, and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from terrasieve.boxes.coding import SPREAD, from_differences, from_midpoints, to_differences, to_midpoints
from terrasieve.boxes.oriented import canonical, enclosing
from terrasieve.boxes.overlap import iou_of_pairs


def drawn(n: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    spread = torch.tensor([100, 100, 60, 30, 2 * math.pi], dtype=torch.float64)
    boxes = torch.rand(n, 5, generator=draw, dtype=torch.float64) * spread + torch.tensor([0, 0, 4, 2, -math.pi])
    boxes[: n // 4, 4] = torch.tensor([0, math.pi / 2, -math.pi / 2, math.pi]).repeat(n // 16 + 1)[: n // 4]
    return canonical(boxes)


def test_midpoints_there_and_back() -> None:
    boxes, anchors = drawn(2000, 1), enclosing(drawn(2000, 2))
    code = to_midpoints(boxes, anchors)
    assert code[:, 4:].abs().max() <= 0.5 + 1e-9
    assert iou_of_pairs(from_midpoints(code, anchors), boxes).min() > 1 - 1e-3
    tilted = boxes[:, 4].remainder(math.pi / 2).sub(math.pi / 4).abs() < math.pi / 4 - 0.05
    assert iou_of_pairs(from_midpoints(code, anchors)[tilted], boxes[tilted]).min() > 1 - 1e-5


def test_midpoints_by_hand() -> None:
    anchor = torch.tensor([[0.0, 0, 10, 20]])
    tilted = torch.tensor([[5.0, 10, math.sqrt(32), math.sqrt(8), math.pi / 4]])  # enclosing box 6 x 6
    code = to_midpoints(tilted, anchor)[0].tolist()
    # the top corner is (4, 7), 1 left of the middle; the right one (8, 11), 1 below it
    assert code == pytest.approx([0, 0, math.log(0.6), math.log(0.3), -1 / 6, 1 / 6], abs=1e-6)
    parallelogram = torch.tensor([[0.0, 0, 0, 0, 0, 0]])  # a rhombus 10 x 20 becomes the square on its longer diagonal
    found = from_midpoints(parallelogram, anchor)[0]
    assert found[2:4].tolist() == pytest.approx([math.sqrt(200)] * 2, abs=1e-4)
    wild = from_midpoints(torch.tensor([[0, 0, 1e6, 1e6, 1e6, -1e6]]), anchor)
    assert wild.isfinite().all()


def test_differences_there_and_back() -> None:
    boxes, proposals = drawn(2000, 3), drawn(2000, 4)
    code = to_differences(boxes, proposals)
    assert code[:, 4].abs().max() <= math.pi / 4 / SPREAD[4] + 1e-9
    assert iou_of_pairs(from_differences(code, proposals), boxes).min() > 1 - 1e-5
    assert to_differences(proposals, proposals).abs().max() < 1e-9


def test_differences_by_hand() -> None:
    proposal = torch.tensor([[10.0, 10, 8, 4, math.pi / 2 - 0.1]])
    box = torch.tensor([[10.0, 14, 8, 4, -math.pi / 2 + 0.1]])  # nearly along y: the same direction but for 0.2
    code = to_differences(box, proposal)[0] * torch.tensor(SPREAD)
    along = 4 * math.sin(math.pi / 2 - 0.1) / 8
    assert code.tolist() == pytest.approx([along, 4 * math.cos(math.pi / 2 - 0.1) / 4, 0, 0, 0.2], abs=1e-5)
