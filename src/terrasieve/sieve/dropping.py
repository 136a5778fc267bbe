"""Dropping: from scores of redundancy to the patches that are kept.

After ``similarity``, before ``ragged``; ``methods.dropping`` puts them together. Pure functions over scores (B, N),
higher = more redundant, +inf = no data. Of equal scores the lower id counts as less redundant (of the lower sample,
where samples compete). Nothing waits for the device. Source: Papazafeiropoulos et al. 2026; METHODS.md, section 7.
"""

from __future__ import annotations

import torch
from torch import Tensor


def static_ids(score_BN: Tensor, count: int) -> Tensor:
    """Keep the ``count`` least redundant patches of every image: (B, count) int64, ascending.

    Raises:
        ValueError: if count is not in [1, N].
    """
    if not 1 <= count <= score_BN.shape[1]:
        raise ValueError(f"{count} patches to keep out of {score_BN.shape[1]}")
    return score_BN.argsort(dim=1, stable=True)[:, :count].sort(dim=1).values


def dynamic_keep(score_BN: Tensor, threshold: Tensor | float, k_min: int) -> Tensor:
    """Keep every patch that scores below ``threshold``, and at least the ``k_min`` least redundant: (B, N) bool.

    Raises:
        ValueError: if k_min is not in [1, N].
    """
    return (score_BN < threshold).scatter(1, static_ids(score_BN, k_min), True)


def calibrated(score_BN: Tensor, tokens: int) -> Tensor:
    """Find the threshold that keeps ``tokens`` of the B * N patches: () of the scores' type.

    It is the lowest score that is not kept, +inf if all are. Fewer are kept where several patches score just that.

    Raises:
        ValueError: if tokens is not in [0, B * N].
    """
    if not 0 <= tokens <= score_BN.numel():
        raise ValueError(f"{tokens} tokens to keep out of {score_BN.numel()}")
    if tokens == score_BN.numel():
        return score_BN.new_full((), torch.inf)
    return score_BN.flatten().kthvalue(tokens + 1).values


def budget_keep(score_BN: Tensor, tokens: int, floor: float, noise_BN: Tensor, k_min: int) -> Tensor:
    """Share a budget of ``tokens`` over the whole batch, so that rich images get more: (B, N) bool, exactly ``tokens``.

    A share ``floor`` of the budget is spread evenly and drawn at random, for coverage (floor * tokens // B patches of
    each image, those without data last); each image gets at least ``k_min`` patches, random ones first, then its least
    redundant; the rest go to the least redundant patches of the batch.

    Args:
        score_BN: redundancy.
        tokens: patches kept in the batch, in [B * k_min, B * N].
        floor: in [0, 1].
        noise_BN: uniform in [0, 1), decides the random ones.
        k_min: in [1, N].

    Raises:
        ValueError: if the numbers do not fit each other.
    """
    B, N = score_BN.shape
    if not (1 <= k_min <= N and B * k_min <= tokens <= B * N and 0 <= floor <= 1):
        raise ValueError(f"{tokens} tokens, at least {k_min} of {N} patches in each of {B} images, floor {floor}")
    random = int(floor * tokens) // B
    first_BN = score_BN
    if random:
        drawn = static_ids(torch.where(score_BN.isposinf(), 1.0 + noise_BN, noise_BN), random)
        first_BN = score_BN.scatter(1, drawn, -torch.inf)
    first_BN = first_BN.scatter(1, static_ids(first_BN, k_min), -torch.inf)
    order = first_BN.flatten().argsort(stable=True)[:tokens]
    return torch.zeros_like(score_BN, dtype=torch.bool).flatten().scatter(0, order, True).view(B, N)
