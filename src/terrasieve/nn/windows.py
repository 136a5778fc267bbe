"""Windows: attention within squares of the grid, for images with too many patches to see each other in every block.

Between a choice of patches and ``Encoder.encode_kept``. Tokens are laid out window by window, so that a window is what
an image is to ``packed``: a run of tokens that attend to each other, with any number of patches dropped. Source: Li et
al., "Exploring Plain Vision Transformer Backbones for Object Detection", ECCV 2022. Deviations: windows at the border
are smaller instead of padded with zeros, and the class token, which ViTDet has not, is a window of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from terrasieve.nn.packed import Packing
from terrasieve.sieve.ragged import Ragged


@dataclass(frozen=True)
class Windows:
    """Tokens of a batch window by window.

    Attributes:
        layout: the patches, image after image, and within an image window after window.
        whole: where images end.
        parts: where windows end.
        place_T: where in ``layout`` each patch of the choice is.
        shape: (B, K) of the choice, or (T,) of a ragged one.
    """

    layout: Ragged
    whole: Packing
    parts: Packing
    place_T: Tensor
    shape: tuple[int, ...]

    @staticmethod
    def of(kept: Tensor | Ragged, grid: tuple[int, int], side: int) -> Windows:
        """Lay out a choice of patches.

        Args:
            kept: ids (B, K), or a ragged layout.
            grid: rows and columns of patches.
            side: of a window, in patches.
        """
        ragged = kept if isinstance(kept, Ragged) else _even(kept)
        device = ragged.ids_T.device
        window_N, count = _windows(grid, side, device)
        key_T = ragged.rows_T * count + window_N[ragged.ids_T]
        order_T = key_T.argsort(stable=True)
        layout = replace(ragged, ids_T=ragged.ids_T[order_T])  # images stay in order, so all else does
        whole = Packing.of(layout, grid[0] * grid[1])
        sizes = torch.zeros(len(ragged) * count, dtype=torch.int64, device=device)
        sizes.scatter_add_(0, key_T, torch.ones_like(key_T))
        sizes_R = torch.nn.functional.pad(sizes.view(len(ragged), count), (1, 0), value=1).flatten()
        parts = whole.divided(sizes_R, min(side * side, grid[0] * grid[1]))
        shape = (len(order_T),) if isinstance(kept, Ragged) else tuple(kept.shape)
        return Windows(layout, whole, parts, order_T.argsort(), shape)

    def back(self, tokens_TD: Tensor) -> Tensor:
        """Put tokens in the order of the choice: (B, K, D), or (T, D) of a ragged one."""
        return tokens_TD.index_select(0, self.place_T).view(*self.shape, -1)


def whole_blocks(depth: int, count: int) -> frozenset[int]:
    """Return the blocks that see whole images: the last of each of ``count`` even parts, as ViTDet has them."""
    return frozenset(round((part + 1) * depth / count) - 1 for part in range(count))


def _even(ids_BK: Tensor) -> Ragged:
    """Write ids of as many patches in each image as a ragged layout."""
    B, K = ids_BK.shape
    rows_T = torch.arange(B, device=ids_BK.device).repeat_interleave(K, output_size=B * K)
    offsets = torch.arange(0, (B + 1) * K, K, device=ids_BK.device, dtype=torch.int32)
    return Ragged(ids_BK.flatten(), rows_T, offsets, (K,) * B)


def _windows(grid: tuple[int, int], side: int, device: torch.device) -> tuple[Tensor, int]:
    """Return the window of each place on the grid, (N,), and the number of windows."""
    rows, columns = (torch.arange(length, device=device) // side for length in grid)
    across = -(-grid[1] // side)
    return (rows[:, None] * across + columns).flatten(), -(-grid[0] // side) * across
