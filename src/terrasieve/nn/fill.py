"""Fills: what stands on the grid where patches were dropped, before a pyramid of feature maps is made of it.

Between ``encoder.encode_kept`` and ``pyramid``. Kept tokens are never changed. Source: Papazafeiropoulos et al. 2026,
"Hide and Seek"; METHODS.md, section 7.

Positions: the encoder added them to the kept tokens, so what is interpolated or copied carries a position already, and
zeros are to stay zeros; only the learned token, the same everywhere, gets the position of its place.

Shapes: L slots in which a kept token may stand, K of them for fixed ids, all N of the grid for a ragged layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terrasieve.nn.position import sincos_2d
from terrasieve.sieve.ragged import Ragged

Fill = Literal["learned", "zeros", "bilinear", "copy"]


class Slots(NamedTuple):
    """Kept tokens of each image side by side, with no size that the host would have to wait for.

    Attributes:
        ids_BL: place of each slot on the grid.
        tokens_BL: which of the T kept tokens of the batch stands in it.
        real_BL: False for slots without a token; None when all have one.
        place_T: where each token stands in the grids of the batch, b N + id.
    """

    ids_BL: Tensor
    tokens_BL: Tensor
    real_BL: Tensor | None
    place_T: Tensor

    @staticmethod
    def of(kept: Tensor | Ragged, patches: int) -> Slots:
        """Lay the tokens of ids (B, K), or of a ragged layout, out in slots."""
        if isinstance(kept, Ragged):
            B, T, device = len(kept), len(kept.ids_T), kept.ids_T.device
            place_T = kept.rows_T * patches + kept.ids_T
            numbers_T = torch.arange(T, device=device)
            tokens_BN = torch.full((B * patches,), -1, device=device).index_copy(0, place_T, numbers_T)
            tokens_BN = tokens_BN.view(B, patches)
            ids_BN = torch.arange(patches, device=device).expand(B, -1)
            return Slots(ids_BN, tokens_BN.clamp_min(0), tokens_BN >= 0, place_T)
        B, K = kept.shape
        tokens_BK = torch.arange(B * K, device=kept.device).view(B, K)
        place_BK = kept + patches * torch.arange(B, device=kept.device)[:, None]
        return Slots(kept, tokens_BK, None, place_BK.flatten())


class Filler(nn.Module):
    """Put kept tokens back on the full grid and fill the places between them."""

    positions_ND: Tensor

    def __init__(self, fill: Fill, levels: int, width: int, grid: tuple[int, int]) -> None:
        """Make ready for ``levels`` sets of tokens of ``width``, each with a learned token of its own."""
        super().__init__()
        self.fill, self.grid = fill, grid
        if fill == "learned":
            self.token = nn.Parameter(torch.zeros(levels, width))
            self.register_buffer("positions_ND", sincos_2d(*grid, width), persistent=False)

    def forward(
        self, levels: Sequence[Tensor], kept: Tensor | Ragged | None, content_BND: Tensor | None = None
    ) -> list[Tensor]:
        """Fill every level: (B, K, D) or (T, D) -> (B, N, D).

        Args:
            levels: tokens of the kept patches.
            kept: their ids (B, K), or their ragged layout; None when all N are there, in order.
            content_BND: embeddings of all patches without positions, by which ``copy`` finds the most similar.
        """
        if kept is None:
            return list(levels)
        N = self.grid[0] * self.grid[1]
        slots = Slots.of(kept, N)
        flat = [level if level.ndim == 2 else level.flatten(0, 1) for level in levels]
        if self.fill == "bilinear":
            weights_BNL = tent_weights(slots, self.grid)
            # Kept places are written over what the product gives, which in half precision is only nearly the same.
            return [_place(x, slots, weights_BNL.to(x.dtype) @ x[slots.tokens_BL]) for x in flat]
        if self.fill == "copy":
            assert content_BND is not None, "copy compares embeddings"
            source_BN = most_similar(content_BND, slots)
            return [x[source_BN] for x in flat]
        B = slots.ids_BL.shape[0]
        if self.fill == "zeros":
            return [_place(x, slots, x.new_zeros(B, N, x.shape[1])) for x in flat]
        base = [(token_D + self.positions_ND).to(x.dtype) for token_D, x in zip(self.token, flat, strict=True)]
        return [_place(x, slots, base_ND.expand(B, -1, -1)) for x, base_ND in zip(flat, base, strict=True)]


def _place(tokens_TD: Tensor, slots: Slots, base_BND: Tensor) -> Tensor:
    """Write kept tokens into a copy of the grids."""
    return base_BND.flatten(0, 1).index_copy(0, slots.place_T, tokens_TD).view(base_BND.shape)


def tent_weights(slots: Slots, grid: tuple[int, int]) -> Tensor:
    """Weigh the kept tokens for every place of the grid: (B, N, L) float32, rows sum to 1.

    The weight of a token dy rows and dx columns away is max(0, 1 - |dy| / r) max(0, 1 - |dx| / r), normalised. The
    radius r is 1 + the distance, the larger of |dy| and |dx|, to the nearest kept token: a kept place takes its own
    alone, and where every second row and column is kept this is bilinear interpolation.
    """
    ids_B1L, columns = slots.ids_BL[:, None], grid[1]
    ids_N1 = torch.arange(grid[0] * columns, device=ids_B1L.device)[:, None]
    dy_BNL = (ids_N1 // columns - ids_B1L // columns).abs().float()
    dx_BNL = (ids_N1 % columns - ids_B1L % columns).abs().float()
    distance_BNL = torch.maximum(dy_BNL, dx_BNL)
    if slots.real_BL is not None:
        distance_BNL = distance_BNL.masked_fill(~slots.real_BL[:, None], torch.inf)
    radius_BN1 = 1 + distance_BNL.amin(dim=2, keepdim=True)
    weights_BNL = (1 - dy_BNL / radius_BN1) * (1 - dx_BNL / radius_BN1) * (distance_BNL < radius_BN1)
    return weights_BNL / weights_BNL.sum(dim=2, keepdim=True)


@torch.no_grad()
def most_similar(content_BND: Tensor, slots: Slots) -> Tensor:
    """Return for every place which kept token's patch is the most similar to its own by cosine: (B, N) into the T.

    A kept place is its own, whatever duplicates it has; of equals the first is taken.
    """
    units_BND = F.normalize(content_BND.float(), dim=-1)
    chosen_BLD = units_BND.gather(1, slots.ids_BL[..., None].expand(-1, -1, units_BND.shape[-1]))
    cosine_BNL = units_BND @ chosen_BLD.transpose(1, 2)
    if slots.real_BL is not None:
        cosine_BNL = cosine_BNL.masked_fill(~slots.real_BL[:, None], -torch.inf)
    source_BN = slots.tokens_BL.gather(1, cosine_BNL.argmax(dim=2))
    own_T = torch.arange(len(slots.place_T), device=source_BN.device)
    return source_BN.flatten().index_copy(0, slots.place_T, own_T).view(source_BN.shape)
