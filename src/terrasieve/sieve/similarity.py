"""Similarity of patches: how much of an image is said twice.

Beside ``richness``: the scores that ``dropping`` acts on. Source: Papazafeiropoulos et al. 2026, "Hide and Seek"
(cosine similarity of patch embeddings before positions are added); METHODS.md, section 7.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["mean", "largest", "cover"]
_PAIRS = 2**25  # cosines held at a time: 128 MB


def redundancy(tokens_BND: Tensor, reduction: Reduction = "mean", valid_BN: Tensor | None = None) -> Tensor:
    """Score how redundant each patch is within its image: cosine similarity to the other patches, higher = more so.

    Args:
        tokens_BND: embeddings without positions, or flat pixels; any float type, no gradient flows.
        reduction: ``mean`` over the others, in O(N D); ``largest`` over the others; ``cover``: patches are chosen one
            by one, each time the one least like those chosen before (farthest first, beginning with the lowest mean),
            and a patch's score is its largest cosine to those before it. So the k lowest scores are the first k
            choices, and score < t is a greedy cover: no two of the kept are as alike as t, and every dropped one is
            that like a kept one.
        valid_BN: bool, False for patches without data: they score +inf and have no part in the others' scores.

    Returns:
        (B, N) float32 in [-1, 1], or +inf; a patch without others scores -1.
    """
    with torch.no_grad(), torch.autocast(tokens_BND.device.type, enabled=False):
        tokens_BND = tokens_BND.detach().float()
        # Products with the reciprocal length, so that no copy of the tokens at unit length is made.
        scale_BN: Tensor = torch.linalg.vector_norm(tokens_BND, dim=-1).clamp_min(1e-12).reciprocal()
        if valid_BN is not None:
            scale_BN = scale_BN * valid_BN
        score_BN = _mean(tokens_BND, scale_BN, valid_BN)
        if reduction != "mean":
            reduce = _largest if reduction == "largest" else _cover
            score_BN = _by_pairs(reduce, tokens_BND, scale_BN, valid_BN, score_BN)
        score_BN = score_BN.clamp(-1.0, 1.0)
        return score_BN if valid_BN is None else score_BN.masked_fill(~valid_BN, torch.inf)


def effective_rank(tokens_BND: Tensor) -> Tensor:
    """Compute the effective rank of each image's tokens: exp of the entropy of their normalised singular values.

    Source: Roy & Vetterli, EUSIPCO 2007.

    Args:
        tokens_BND: any float type, no gradient flows.

    Returns:
        (B,) float32 in [1, min(N, D)]; 1 when all tokens are multiples of one, or zero.
    """
    with torch.no_grad(), torch.autocast(tokens_BND.device.type, enabled=False):
        # Roots of the eigenvalues of the Gram matrix in float64: half the time of singular values, and as exact.
        tall_BMR = tokens_BND.detach().double()
        tall_BMR = tall_BMR.transpose(1, 2) if tall_BMR.shape[1] < tall_BMR.shape[2] else tall_BMR
        values_BR = torch.linalg.eigvalsh(tall_BMR.transpose(1, 2) @ tall_BMR).clamp_min(0).sqrt()
        shares_BR = values_BR / values_BR.sum(dim=1, keepdim=True).clamp_min(1e-30)
        rank_B: Tensor = torch.special.entr(shares_BR).sum(dim=1).exp().float()
        return rank_B


def _mean(tokens_BND: Tensor, scale_BN: Tensor, valid_BN: Tensor | None) -> Tensor:
    """Return the mean cosine to the others through the sum of all unit vectors, the patch itself taken out."""
    sum_BD = torch.bmm(scale_BN[:, None], tokens_BND)
    all_BN = torch.bmm(tokens_BND, sum_BD.transpose(1, 2)).squeeze(-1) * scale_BN
    itself_BN = (torch.linalg.vector_norm(tokens_BND, dim=-1) * scale_BN).square()
    real_BN = torch.ones_like(scale_BN[:, :1]).expand_as(scale_BN) if valid_BN is None else valid_BN
    others_B1 = real_BN.sum(dim=1, keepdim=True) - 1
    mean_BN: Tensor = (all_BN - itself_BN) / others_B1.clamp_min(1)
    return mean_BN.masked_fill(others_B1 < 1, -1.0)


def _by_pairs(
    reduce: Callable[[Tensor, Tensor], Tensor],
    tokens_BND: Tensor,
    scale_BN: Tensor,
    valid_BN: Tensor | None,
    mean_BN: Tensor,
) -> Tensor:
    """Reduce all cosines of an image, as many images at a time as memory is meant for."""
    B, N = scale_BN.shape
    count = max(_PAIRS // N**2, 1)
    scores = []
    for start in range(0, B, count):
        rows = slice(start, start + count)
        units_BND = tokens_BND[rows] * scale_BN[rows, :, None]
        cosine_BNN = units_BND @ units_BND.transpose(1, 2)
        mean = mean_BN[rows]
        if valid_BN is not None:
            cosine_BNN.masked_fill_(~valid_BN[rows, None], -torch.inf)
            mean = mean.masked_fill(~valid_BN[rows], torch.inf)
        scores.append(reduce(cosine_BNN, mean))
    return torch.cat(scores)


def _largest(cosine_BNN: Tensor, _: Tensor) -> Tensor:
    cosine_BNN.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    return cosine_BNN.amax(dim=-1)


def _cover(cosine_BNN: Tensor, mean_BN: Tensor) -> Tensor:
    """Choose farthest first; argmin takes the lower id of equal ones. A score stands still once its patch is taken."""
    score_BN = torch.full_like(mean_BN, -1.0)
    taken_BN = mean_BN.isinf()
    rows_B = torch.arange(len(mean_BN), device=mean_BN.device)
    chosen_B = mean_BN.argmin(dim=1)
    for _ in range(mean_BN.shape[1] - 1):
        taken_BN = taken_BN.scatter(1, chosen_B[:, None], True)
        nearer_BN = torch.maximum(score_BN, cosine_BNN[rows_B, chosen_B])
        score_BN = torch.where(taken_BN, score_BN, nearer_BN)
        chosen_B = score_BN.masked_fill(taken_BN, torch.inf).argmin(dim=1)
    return score_BN
