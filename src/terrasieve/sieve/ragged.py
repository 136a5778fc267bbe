"""Ragged batches: images that keep different numbers of patches, their tokens one after another without padding.

After ``dropping``; ``nn.packed`` computes on it. T = patches kept in the batch. METHODS.md, section 8.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ragged:
    """Which patches a batch keeps.

    Attributes:
        ids_T: int64, place of each patch on its own image's grid, ascending within an image, image after image.
        rows_T: int64, the image that it belongs to.
        offsets: (B + 1,) int32, where each image's patches begin, and T.
        lengths: patches kept of each image, known on the host; empty where reading them would make the device wait
            (on CUDA, when ``pack`` was told their total). Take ``offsets.diff()`` where the device needs them.
    """

    ids_T: Tensor
    rows_T: Tensor
    offsets: Tensor
    lengths: tuple[int, ...]

    def __len__(self) -> int:
        """Return the number of images, B."""
        return int(self.offsets.shape[0]) - 1


def pack(keep_BN: Tensor, total: int | None = None) -> Ragged:
    """Lay out the patches that are True.

    Args:
        keep_BN: bool, at least one True per row.
        total: how many are True, if that is known: on CUDA the host then need not wait for the device. It must be
            right; on a CPU it is not looked at.
    """
    lengths_B = keep_BN.sum(dim=1)
    lengths: tuple[int, ...] = ()
    if total is None or keep_BN.device.type == "cpu":
        lengths = tuple(lengths_B.tolist())
        total = sum(lengths)
    places = torch.nonzero_static(keep_BN, size=total)
    offsets = torch.nn.functional.pad(lengths_B.cumsum(0), (1, 0)).int()
    return Ragged(places[:, 1].contiguous(), places[:, 0].contiguous(), offsets, lengths)


def take_ragged(values_BND: Tensor, layout: Ragged) -> Tensor:
    """Pick the kept patches' values: (B, N, D) -> (T, D)."""
    return values_BND.flatten(0, 1).index_select(0, layout.rows_T * values_BND.shape[1] + layout.ids_T)


def scatter_ragged(values_TD: Tensor, layout: Ragged, patches: int, fill: Tensor | float) -> Tensor:
    """Put values back on the full grid: (T, D) -> (B, N, D).

    Args:
        values_TD: of the kept patches.
        layout: where they stand.
        patches: N.
        fill: of the other places, a number or (D,); takes part in the gradient.
    """
    B, D = len(layout), values_TD.shape[1]
    fill_D = fill.to(values_TD.dtype) if isinstance(fill, Tensor) else values_TD.new_full((), fill)
    grid = fill_D.expand(B * patches, D).index_copy(0, layout.rows_T * patches + layout.ids_T, values_TD)
    return grid.view(B, patches, D)


def padded(values_TD: Tensor, layout: Ragged) -> tuple[Tensor, Tensor]:
    """Pad every image to the longest: ((B, L, D), (B, L) bool, True where real). The oracle of tests, and of the bench.

    The host waits for the lengths if it does not know them.
    """
    lengths_B = layout.offsets.diff()
    L = int(lengths_B.max())
    mask_BL = torch.arange(L, device=values_TD.device) < lengths_B[:, None]
    place_T = layout.rows_T * L + torch.arange(len(values_TD), device=values_TD.device) - layout.offsets[layout.rows_T]
    grid = values_TD.new_zeros(len(layout) * L, values_TD.shape[1]).index_copy(0, place_T, values_TD)
    return grid.view(len(layout), L, -1), mask_BL


def mean_ragged(values_TD: Tensor, layout: Ragged) -> Tensor:
    """Average each image's tokens: (T, D) -> (B, D) float32."""
    sums_BD = values_TD.new_zeros(len(layout), values_TD.shape[1], dtype=torch.float32)
    return sums_BD.index_add(0, layout.rows_T, values_TD.float()) / layout.offsets.diff()[:, None]
