"""Rotated RoI align against a naive loop, torchvision's upright one, and numerical gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, roi_align

from terrasieve.nn.rotated import levels_of, rotated_roi_align

STRIDES = (4.0, 8.0)


def scene(dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    maps = [torch.randn(2, 3, 48 // int(s), 64 // int(s), dtype=dtype, generator=draw) for s in STRIDES]
    spread = torch.tensor([80, 64, 50, 30, 6], dtype=dtype)
    boxes = torch.rand(20, 5, dtype=dtype, generator=draw) * spread - torch.tensor([8, 8, 0, 0, 3], dtype=dtype)
    return maps, boxes, torch.randint(0, 2, (20,), generator=draw)


def read(map_DHW: Tensor, x: float, y: float) -> Tensor:
    """Read bilinearly at the middle-of-cell coordinates x, y."""
    height, width = map_DHW.shape[1:]
    if not (-1 <= x <= width and -1 <= y <= height):
        return torch.zeros(len(map_DHW), dtype=map_DHW.dtype)
    x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
    left, top = math.floor(x), math.floor(y)
    right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
    above = (1 - x + left) * map_DHW[:, top, left] + (x - left) * map_DHW[:, top, right]
    below = (1 - x + left) * map_DHW[:, bottom, left] + (x - left) * map_DHW[:, bottom, right]
    return (1 - y + top) * above + (y - top) * below


def naive(map_DHW: Tensor, stride: float, box: Tensor, side: int, samples: int) -> Tensor:
    cx, cy, w, h, angle = box.tolist()
    out = torch.zeros(len(map_DHW), side, side, dtype=map_DHW.dtype)
    for row in range(side * samples):
        for column in range(side * samples):
            u = ((column + 0.5) / (side * samples) - 0.5) * w
            v = ((row + 0.5) / (side * samples) - 0.5) * h
            x = cx + u * math.cos(angle) - v * math.sin(angle)
            y = cy + u * math.sin(angle) + v * math.cos(angle)
            value = read(map_DHW, x / stride - 0.5, y / stride - 0.5)
            out[:, row // samples, column // samples] += value / samples**2
    return out


@pytest.mark.parametrize(("side", "samples"), [(3, 2), (2, 1), (4, 3)])
def test_rotated_roi_align_is_the_naive_loop(side: int, samples: int) -> None:
    maps, boxes, image = scene()
    levels = torch.arange(len(boxes)) % 2
    found = rotated_roi_align(maps, STRIDES, boxes, image, side, samples, levels)
    for row, (box, level) in enumerate(zip(boxes, levels, strict=True)):
        expected = naive(maps[level][image[row]], STRIDES[level], box, side, samples)
        assert torch.allclose(found[row], expected, atol=1e-12)


def test_upright_boxes_are_read_as_torchvision_does() -> None:
    maps, boxes, image = scene(torch.float32)
    boxes[:, 4] = 0
    xyxy = torch.cat([boxes[:, :2] - boxes[:, 2:4] / 2, boxes[:, :2] + boxes[:, 2:4] / 2], 1)
    zero = torch.zeros(len(boxes), dtype=torch.long)
    expected = roi_align(maps[0], torch.cat([image[:, None].float(), xyxy], 1), 7, 0.25, 2, aligned=True)
    assert torch.allclose(rotated_roi_align(maps[:1], [4], boxes, image, 7, 2, zero), expected, atol=1e-5)
    assert rotated_roi_align(maps, STRIDES, boxes[:0], image[:0]).shape == (0, 3, 7, 7)


def test_levels_are_those_of_the_feature_pyramid_network() -> None:
    draw = torch.Generator().manual_seed(4)
    size = 2 ** (torch.rand(500, 2, generator=draw) * 10)
    boxes = torch.cat([torch.zeros(500, 2), size, torch.zeros(500, 1)], 1)
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    corners = torch.cat([boxes[:, :2], boxes[:, 2:4]], 1)
    pool({str(n): torch.zeros(1, 1, 256 >> n, 256 >> n) for n in range(4)}, [corners], [(1024, 1024)])
    assert pool.map_levels is not None
    found = levels_of(boxes, (4, 8, 16, 32))
    assert torch.equal(found, pool.map_levels([corners])) and set(found.tolist()) == {0, 1, 2, 3}


def test_gradients_of_maps_and_boxes() -> None:
    draw = torch.Generator().manual_seed(5)
    maps = [torch.randn(2, 2, s, s + 1, dtype=torch.float64, generator=draw, requires_grad=True) for s in (6, 3)]
    boxes = torch.tensor([[10.1, 9.2, 12, 6, 0.4], [3, 15, 20, 4, -1.0], [12, 12, 8, 5, 2.0]], dtype=torch.float64)
    image, levels = torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1])

    def align(fine: Tensor, coarse: Tensor, where: Tensor) -> Tensor:
        return rotated_roi_align([fine, coarse], STRIDES, where, image, 3, 2, levels)

    assert torch.autograd.gradcheck(align, (*maps, boxes.requires_grad_()))
