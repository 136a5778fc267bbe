"""Simple pyramid: the last tokens of a plain ViT as the maps that a detector reads.

Between ``encoder.encode_kept`` and a detector. ViTDet (Li et al., ECCV 2022): all levels are made of the last layer
alone, each by transposed convolutions or pooling, then a convolution of 3 x 3. Deviations: those of ``pyramid``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from terrasieve.nn.encoder import Encoder, initialise
from terrasieve.nn.fill import Fill
from terrasieve.nn.pyramid import TokenPyramid, group_norm
from terrasieve.sieve.ragged import Ragged


class SimplePyramid(nn.Module):
    """Make maps of one width and of falling resolution.

    Attributes:
        strides: pixels of the image per cell of each map.
    """

    def __init__(self, encoder: Encoder, width: int, scales: Sequence[float], fill: Fill, seed: int) -> None:
        """Build a pyramid of one level per scale, see ``nn.pyramid.TokenPyramid``; weights are drawn from ``seed``."""
        super().__init__()
        self.strides = tuple(encoder.patch_px / scale for scale in scales)
        self.tokens = TokenPyramid(encoder.width, width, encoder.grid, scales, fill)
        self.smooth = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), group_norm(width)) for _ in scales
        )
        initialise(self, seed, "pyramid")

    def forward(self, tokens: Tensor, kept: Tensor | Ragged | None, content_BND: Tensor | None = None) -> list[Tensor]:
        """Make maps (B, width, h, w), finest first, of the normed tokens of the kept patches (see ``nn.fill``)."""
        maps = self.tokens([tokens] * len(self.smooth), kept, content_BND)
        return [smooth(map_) for smooth, map_ in zip(self.smooth, maps, strict=True)]
