"""Positions: fixed two-dimensional sine-cosine embeddings.

Added to patch embeddings by ``encoder`` and ``decoder``. Source: MAE (He et al., CVPR 2022); METHODS.md, section 1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sincos_1d(places: Tensor, dim: int) -> Tensor:
    """Embed scalars: (...,) -> (..., dim), [sin(x w_k), cos(x w_k)] with w_k = 10000 ** (-k / (dim / 2))."""
    frequency = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angle = places.double()[..., None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def sincos_2d(rows: int, columns: int, dim: int) -> Tensor:
    """Embed a grid of patches: (rows * columns, dim) float32, row-major; the first half of dim encodes the column.

    Raises:
        ValueError: if dim is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"width {dim} is not a multiple of 4, which sine-cosine positions in two dimensions need")
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    halves = [sincos_1d(column.flatten(), dim // 2), sincos_1d(row.flatten(), dim // 2)]
    return torch.cat(halves, dim=-1).float()
