"""A small NeighborMAE, and batches of neighbours on one smooth ground."""

from __future__ import annotations

from typing import Any

import torch

from terrasieve import keyed
from terrasieve.batch import Batch
from terrasieve.methods.neighbor_mae import (
    NeighborMAE,
    NeighborMAESettings,
    pair_iou,
)
from terrasieve.nn.encoder import Encoder, EncoderSettings

SMALL = {"depth": 2, "width": 32, "heads": 4}


def method_of(size_px: int = 64, bands: int = 3, **changes: Any) -> NeighborMAE:
    encoder = Encoder(EncoderSettings(name="vit_tiny_patch16_224", patch_px=8, depth=2), bands, (size_px, size_px))
    return NeighborMAE(NeighborMAESettings(**{"decoder": SMALL} | changes), encoder)


def batch_of(boxes: torch.Tensor, size_px: int = 64, bands: int = 3, noise: float = 0.0) -> Batch:
    """Images of one smooth ground, cut where the boxes lie, plus noise."""
    B, K = boxes.shape[:2]
    draw = keyed.generator(0, "neighbour test")
    ground = torch.randn(1, bands, 24, 24, generator=draw)
    x = boxes[..., 0, None] + (boxes[..., 2] - boxes[..., 0])[..., None] * (torch.arange(size_px) + 0.5) / size_px
    y = boxes[..., 1, None] + (boxes[..., 3] - boxes[..., 1])[..., None] * (torch.arange(size_px) + 0.5) / size_px
    grid = torch.stack(
        [x[..., None, :].expand(B, K, size_px, -1), y[..., None].expand(B, K, -1, size_px)], dim=-1
    ).flatten(0, 1) / 50 - 1  # fmt: skip
    images = torch.nn.functional.grid_sample(
        ground.expand(B * K, -1, -1, -1), grid, mode="bicubic", align_corners=False
    )
    images = images + noise * torch.randn(images.shape, generator=draw)
    images = images.view(B, K, bands, size_px, size_px)
    nowhere = torch.full((B,), torch.nan, dtype=torch.float64)
    return Batch(
        images[:, 0], nowhere, nowhere, nowhere, torch.arange(B), neighbours=images[:, 1:], boxes=boxes,
        kinds=torch.zeros(B, K - 1, dtype=torch.int64), overlap=tuple(pair_iou(boxes[:, :2]).tolist()),
    )  # fmt: skip


def shifted(*shifts: float, side: float = 40.0) -> torch.Tensor:
    """Pairs of squares, the second one to the right of the first by a share of its side."""
    return torch.tensor(
        [[[10, 10 + side, 10 + side, 10], [10 + s * side, 10 + side, 10 + side + s * side, 10]] for s in shifts]
    )


def draw() -> torch.Generator:
    return keyed.generator(0, "mask", 0)
