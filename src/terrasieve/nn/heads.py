"""Heads: from a pyramid of feature maps to a class for every pixel.

After ``pyramid``. Source: Xiao et al., "Unified Perceptual Parsing for Scene Understanding", ECCV 2018 (UPerNet): the
pyramid pooling of PSPNet (Zhao et al., CVPR 2017) on the coarsest level, a feature pyramid network (Lin et al., CVPR
2017) down to the finest, and the fusion of all levels there. Deviations: GroupNorm (see ``pyramid``), no dropout, no
auxiliary head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terrasieve.nn.pyramid import group_norm

POOLED_SIDES = (1, 2, 3, 6)


def convolution(channels: int, width: int, side: int) -> nn.Sequential:
    """Build a convolution that keeps the map's size, its norm and a ReLU."""
    layer = nn.Conv2d(channels, width, side, padding=side // 2, bias=False)
    return nn.Sequential(layer, group_norm(width), nn.ReLU())


def resize_maps(x_BDhw: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample maps bilinearly to rows and columns."""
    if tuple(x_BDhw.shape[-2:]) == size:
        return x_BDhw
    return F.interpolate(x_BDhw, size=size, mode="bilinear", align_corners=False)


class UPerNet(nn.Module):
    """Classify every pixel from maps that get coarser level by level."""

    def __init__(self, width: int, levels: int, classes: int) -> None:
        """Build the head.

        Args:
            width: channels of every map, a multiple of 16.
            levels: number of maps.
            classes: C.
        """
        super().__init__()
        # PSPNet gives each of the four poolings a quarter of the channels.
        self.pooled = nn.ModuleList(convolution(width, width // 4, 1) for _ in POOLED_SIDES)
        self.context = convolution(width + len(POOLED_SIDES) * (width // 4), width, 3)
        self.laterals = nn.ModuleList(convolution(width, width, 1) for _ in range(levels - 1))
        self.smoothed = nn.ModuleList(convolution(width, width, 3) for _ in range(levels - 1))
        self.fuse = convolution(levels * width, width, 3)
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, maps: list[Tensor], size_px: tuple[int, int]) -> Tensor:
        """Compute logits: maps (B, width, h, w), finest first -> (B, C, H, W).

        Args:
            maps: one per level.
            size_px: height and width of the image.
        """
        *fine, coarse = maps
        x = self.context(torch.cat([coarse, *self._pool(coarse)], dim=1))
        levels = [x]
        for map_, lateral, smooth in zip(fine[::-1], self.laterals, self.smoothed, strict=True):
            x = lateral(map_) + resize_maps(x, _size(map_))
            levels.append(smooth(x))
        finest = _size(maps[0])
        fused = self.fuse(torch.cat([resize_maps(level, finest) for level in levels[::-1]], dim=1))
        return resize_maps(self.classify(fused), size_px)

    def _pool(self, x_BDhw: Tensor) -> list[Tensor]:
        return [
            resize_maps(convolve(F.adaptive_avg_pool2d(x_BDhw, side)), _size(x_BDhw))
            for side, convolve in zip(POOLED_SIDES, self.pooled, strict=True)
        ]


def _size(x_BDhw: Tensor) -> tuple[int, int]:
    return int(x_BDhw.shape[-2]), int(x_BDhw.shape[-1])
