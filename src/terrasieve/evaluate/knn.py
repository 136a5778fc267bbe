"""k-nearest-neighbour classification on frozen features.

Used by ``evaluate.protocol``. Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance
Discrimination", CVPR 2018 (cosine similarity, weights exp(similarity / T)); multi-label as a weighted vote per label.

Shapes: N samples in the bank, M queries, D features, C classes, K neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from terrasieve.errors import UserError


def knn_scores(
    bank_ND: Tensor,
    bank_targets: Tensor,
    query_MD: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    classes: int | None = None,
    chunk: int = 256,
) -> Tensor:
    """Let the k most similar bank samples vote on each query's classes.

    Of equally similar bank samples the one with the lowest index comes first. Memory is O(chunk x N).

    Args:
        bank_ND: (N, D) features of the labelled samples; any scale.
        bank_targets: (N,) int64 class numbers, or (N, C) multi-hot.
        query_MD: (M, D) features to classify.
        k: neighbours, 1 <= k <= N.
        temperature: T > 0 in exp(cosine / T); the smaller, the more the nearest ones count.
        classes: C of a multi-class task; None = the largest class number + 1.
        chunk: queries compared at once.

    Returns:
        (M, C) float32 in [0, 1]: the share of the vote. It sums to 1 for multi-class targets.

    Raises:
        UserError: k or temperature out of range.
    """
    if not 1 <= k <= len(bank_ND):
        raise UserError(f"k-NN: k = {k} with a bank of {len(bank_ND)} samples; choose 1 <= k <= {len(bank_ND)}")
    if temperature <= 0:
        raise UserError(f"k-NN: temperature = {temperature}; it must be above 0 (0.07 is usual)")
    if bank_targets.ndim == 1:
        bank_targets = torch.nn.functional.one_hot(bank_targets, classes or -1)
    votes_NC = bank_targets.float()
    unit_DN = torch.nn.functional.normalize(bank_ND.float(), dim=1).T.contiguous()
    scores = []
    query_MD = torch.nn.functional.normalize(query_MD.float(), dim=1)
    for start in range(0, len(query_MD), chunk):
        similarity_MK, index_MK = _nearest(query_MD[start : start + chunk] @ unit_DN, k)
        # The softmax is exp(s/T) over its sum; it cannot overflow at a small T.
        weight_MK = (similarity_MK / temperature).softmax(1)
        scores.append(torch.einsum("mk,mkc->mc", weight_MK, votes_NC[index_MK]))
    return torch.cat(scores) if scores else votes_NC.new_zeros(0, votes_NC.shape[1])


def _nearest(similarity_MN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest similarities per row and their indices, the lowest indices where they tie at the edge."""
    values_MK, index_MK = similarity_MN.topk(k, dim=1)
    tied = ((similarity_MN >= values_MK[:, -1:]).sum(1) > k).nonzero()[:, 0]
    if len(tied):  # topk leaves the choice open; sorting every row would be slow
        index_MK[tied] = similarity_MN[tied].argsort(dim=1, descending=True, stable=True)[:, :k]
    return values_MK, index_MK
