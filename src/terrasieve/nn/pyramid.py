"""Pyramid: the tokens of a plain ViT's tapped layers as feature maps of several resolutions.

Between ``encoder.encode_kept`` and ``heads``. A plain ViT has one resolution; transposed convolutions and pooling make
the others, as BEiT does for UPerNet (Bao et al., ICLR 2022) and ViTDet for detection (Li et al., ECCV 2022). Deviation:
tokens are brought to the head's width first, while only the kept ones are there, and then filled in (``fill``): the
same family of functions, since a linear map commutes with copying and averaging, at a fraction of the cost.

Norms are GroupNorm throughout: dense batches are small (BatchNorm over a 1 x 1 map of one image is not even defined),
and batch statistics would mix filled with real places and remember the share of them that training had, while inference
may drop another one. GroupNorm computes the same in training, at inference and under any division of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from terrasieve.nn.fill import Fill, Filler
from terrasieve.sieve.ragged import Ragged

SCALES = (4.0, 2.0, 1.0, 0.5)
ALLOWED_SCALES = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.125)


def group_norm(width: int) -> nn.GroupNorm:
    """Return a GroupNorm of at most 32 groups of at least 4 channels; ``width`` is a multiple of 4."""
    return nn.GroupNorm(math.gcd(32, width // 4), width)


class Halve(nn.Module):
    """Take the largest of 2 x 2; the last row or column of an odd side stands alone, so 1 x 1 stays."""

    def forward(self, x_BDhw: Tensor) -> Tensor:
        """Pool: (B, D, h, w) -> (B, D, ceil(h / 2), ceil(w / 2))."""
        return F.max_pool2d(x_BDhw, 2, ceil_mode=True)


def rescale(width: int, scale: float) -> nn.Sequential:
    """Build the layers that make a map ``scale`` times as fine, one of ``ALLOWED_SCALES``."""
    steps = round(math.log2(scale))
    if steps < 0:
        return nn.Sequential(*(Halve() for _ in range(-steps)))
    layers: list[nn.Module] = []
    for step in range(steps):
        layers += [group_norm(width), nn.GELU()] if step else []
        layers.append(nn.ConvTranspose2d(width, width, 2, stride=2))
    return nn.Sequential(*layers)


class TokenPyramid(nn.Module):
    """Norm, project, fill, lay out and rescale each tapped layer.

    Attributes:
        grid: rows and columns of patches.
    """

    def __init__(self, tokens: int, width: int, grid: tuple[int, int], scales: Sequence[float], fill: Fill) -> None:
        """Build a pyramid of one level per scale.

        Args:
            tokens: width of the encoder's tokens.
            width: of the maps, a multiple of 4.
            grid: rows and columns of patches.
            scales: how much finer than the grid of patches each level is, see ``ALLOWED_SCALES``.
            fill: of the dropped places.
        """
        super().__init__()
        self.grid = grid
        last = len(scales) - 1
        # The last level is the encoder's output, which the encoder's own norm has been over.
        self.norms = nn.ModuleList(
            nn.Identity() if level == last else nn.LayerNorm(tokens, eps=1e-6) for level in range(len(scales))
        )
        self.projections = nn.ModuleList(nn.Linear(tokens, width) for _ in scales)
        self.filler = Filler(fill, len(scales), width, grid)
        self.scales = nn.ModuleList(rescale(width, scale) for scale in scales)

    def forward(
        self, levels: Sequence[Tensor], kept: Tensor | Ragged | None, content_BND: Tensor | None = None
    ) -> list[Tensor]:
        """Make maps: one (B, width, h, w) per level, h and w the grid's times the level's scale, rounded up.

        Args:
            levels: tokens (B, K, D) or (T, D) of the kept patches, the last one normed.
            kept: see ``fill``.
            content_BND: see ``fill``.
        """
        projected = [
            project(norm(tokens)) for tokens, norm, project in zip(levels, self.norms, self.projections, strict=True)
        ]
        filled = self.filler(projected, kept, content_BND)
        # Seen as (B, D, h, w) the tokens lie channels last, which convolutions are fastest on; nothing is moved.
        maps = [tokens_BND.transpose(1, 2).unflatten(2, self.grid) for tokens_BND in filled]
        return [scale(x_BDhw) for scale, x_BDhw in zip(self.scales, maps, strict=True)]
