"""Tokens of neighbours: a batch's groups laid out as patches, which of them are encoded and which are predicted.

Used by ``neighbor_mae``. Random choice within an image is the paper's (Zeng et al., CVPR 2026; METHODS.md, section 4);
richness over the whole group, ground that is encoded once, and targets that neighbours do not give away are ours.

Legend: B groups of K images, N patches of an image, M = K N of a group, P values of a patch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from terrasieve.methods.visibility import cross_project, normalised, novelty
from terrasieve.nn.encoder import Encoded
from terrasieve.nn.patches import patchify, unpatchify
from terrasieve.sieve.policies import Shares, grow_seeds, richest_ids
from terrasieve.sieve.ragged import Ragged
from terrasieve.sieve.richness import hog_energy


@dataclass(frozen=True)
class Seen:
    """A batch's groups.

    Attributes:
        images: (B, K, C, H, W), normalised per band.
        valid: (B, K, H, W) float, 1 or 0; None when every pixel is real.
        boxes: (B, K, 4) in the frame of positions.
        patches_BMP: all patches, image after image.
        corners_BM4: their boxes.
        patch_px: side of a patch.
    """

    images: Tensor
    valid: Tensor | None
    boxes: Tensor
    patches_BMP: Tensor
    corners_BM4: Tensor
    patch_px: int

    @property
    def patches(self) -> int:
        """Patches of an image, N."""
        return self.patches_BMP.shape[1] // self.images.shape[1]

    def per_patch(self, values: Tensor) -> Tensor:
        """Average (B, K, H, W) over patches: (B, M)."""
        return patchify(values.flatten(0, 1)[:, None], self.patch_px).mean(-1).view(len(self.images), -1)

    def on_pixels(self, flags_BM: Tensor) -> Tensor:
        """Spread flags of patches over their pixels: (B, K, H, W) float32, K as many as there are flags for."""
        H, W = self.images.shape[-2:]
        p = self.patch_px
        grid = flags_BM.view(len(flags_BM), -1, H // p, 1, W // p, 1).float()
        return grid.expand(-1, -1, -1, p, -1, p).reshape(len(flags_BM), -1, H, W)

    def pixels_of(self, values_BMP: Tensor) -> Tensor:
        """Put flat patches back together: (B, K, C, H, W)."""
        flat = values_BMP.reshape(-1, self.patches, values_BMP.shape[-1])
        return unpatchify(flat, self.patch_px, *self.images.shape[-2:]).view_as(self.images)

    def richness(self) -> Tensor:
        """Compute the energy of every patch's histogram of oriented gradients, (B, M)."""
        richness_BM = hog_energy(self.images.flatten(0, 1), self.patch_px).view(len(self.images), -1)
        return richness_BM if self.valid is None else richness_BM * self.per_patch(self.valid)


def random_patches(noise_BM: Tensor, counts: list[int], images: int) -> Tensor:
    """Keep as many random patches of each image as its group's count says: (B, M) bool; nothing waits."""
    counts_B = torch.tensor(counts)
    if noise_BM.is_cuda:
        counts_B = counts_B.pin_memory().to(noise_BM.device, non_blocking=True)
    rank_BKN = noise_BM.view(len(noise_BM), images, -1).argsort(dim=-1).argsort(dim=-1)
    return (rank_BKN < counts_B[:, None, None]).view_as(noise_BM)


def rich_patches(seen: Seen, tokens_BMD: Tensor, count: int, stage: Shares, noise_BM: Tensor) -> Tensor:
    """Keep patches of the whole group: half of them the richest, the others grown by PSTS (``selective_mae``)."""
    seeds = max(count // 2, 1)
    first = (count - seeds) // 2
    ids = richest_ids(seen.richness(), seeds)
    ids = grow_seeds(tokens_BMD, ids, (first, count - seeds - first), stage, noise_BN=noise_BM)
    return torch.zeros_like(noise_BM, dtype=torch.bool).scatter(1, ids, True)


def ground_once(seen: Seen, keep_BM: Tensor, largest: float) -> Tensor:
    """Leave out patches of which earlier images of the group show half or more, unchanged: ground belongs to the first.

    Args:
        seen: the groups.
        keep_BM: what would be encoded.
        largest: squared difference, mean over bands, in variances of the patch, below which a pixel has not changed.
    """
    B, K = seen.images.shape[:2]
    _, _, deviation = normalised(seen.images, seen.patch_px, seen.valid)
    real = torch.ones_like(seen.images[:, :, 0]) if seen.valid is None else seen.valid
    known = torch.zeros_like(real)
    for shift in range(1, K):
        warped, shown = cross_project(seen.images, real, seen.boxes, shift)
        difference = ((warped - seen.images) / deviation).square().mean(2)
        earlier = (torch.arange(K, device=real.device) + shift >= K)[:, None, None]  # the image warped into image k is
        known = torch.maximum(known, shown * (difference < largest) * earlier)  # (k + shift) mod K
    return keep_BM & (seen.per_patch(known) < 0.5).view(B, -1)


def least_given_away(seen: Seen, keep_BM: Tensor, count: int, noise_BM: Tensor, *, rich: bool) -> Tensor:
    """Choose the patches, among those not encoded, that neighbours show least of: (B, count) ids.

    The loss weight cannot be known before the prediction; the warped difference alone stands for it (``novelty``).

    Args:
        seen: the groups.
        keep_BM: what is encoded.
        count: patches of a group to choose.
        noise_BM: uniform, breaks ties: all patches that no neighbour shows have the same weight.
        rich: multiply by richness, which breaks them otherwise.
    """
    score_BM = seen.per_patch(novelty(seen.images, seen.on_pixels(keep_BM), seen.boxes, seen.patch_px, seen.valid))
    score_BM = score_BM * seen.richness() if rich else score_BM + 1e-4 * noise_BM
    return richest_ids(score_BM.masked_fill(keep_BM, -torch.inf), count)


def pool_anchors(encoded: Encoded, layout: Ragged, groups: int, patches: int) -> Tensor:
    """Average the encoded patches of each group's first image, (B, D) float32, for ``methods.regularisers``.

    Where none of them was encoded, as may be where a whole group's richest are, the class token stands for them.

    Args:
        encoded: of the kept patches.
        layout: its rows are groups, or all the images of one group after another.
        groups: B.
        patches: of an image, N.
    """
    per_group = len(layout) // groups
    first_T1 = ((layout.rows_T % per_group == 0) & (layout.ids_T < patches)).float()[:, None]
    sums_BD = encoded.tokens.new_zeros(groups, encoded.tokens.shape[1] + 1, dtype=torch.float32)
    values_TD = torch.cat([encoded.tokens.float() * first_T1, first_T1], dim=1)
    sums_BD = sums_BD.index_add(0, layout.rows_T // per_group, values_TD)
    count_B1 = sums_BD[:, -1:]
    return torch.where(count_B1 > 0, sums_BD[:, :-1] / count_B1.clamp(min=1), encoded.cls_BD[::per_group].float())
