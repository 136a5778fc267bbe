"""Ranks of every row: hard ones, and soft ones with a gradient, which are projections onto the permutahedron.

Used by ``geography`` to compare the order of similarities with the order of distances. The projection is an isotonic
regression, found in one of three ways; all are exact, and none makes a device wait for the host:

    where               way                                          a row costs                               holds
    CPU with numba      pooling of adjacent violators                2 n steps on one number                   2 n
    CUDA with Triton    merging of runs (``isotonic``), a program    6 to 33 steps on all n at once (n of 511  none
                        per row                                      and 4095, counted in a NumPy copy)
    anything else       min-max formula                              7 passes over an n x n table              3 n x n

The formula is a fixed number of operations: there is nothing that could fail to converge, which is the check that an
iteration would need. Backward is the same everywhere: a gradient loses its block's mean, O(n).
Source: Blondel, Teboul, Berthet & Djolonga, ICML 2020; METHODS.md, section 6; Robertson, Wright & Dykstra 1988.

Legend: R rows, n values in a row; w = (n, ..., 1); z = -values / epsilon, in descending order.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

_CELLS = 1 << 25  # of the (rows, n, n) table of means that the min-max formula holds at once


def soft_rank(values: Tensor, epsilon: float) -> Tensor:
    """Return the soft rank of every value in its row; 1 = the largest.

    The smaller ``epsilon``, the nearer to hard ranks, and the fewer entries have a gradient. Values that are equal get
    equal ranks. Rows of soft ranks sum to n (n + 1) / 2. Computed in float64 whatever autocast says.

    Args:
        values: (..., n), any floating type.
        epsilon: strength of the regularisation, > 0, in units of the values.

    Returns:
        (..., n) float32, in [1, n].
    """
    with torch.autocast(values.device.type, enabled=False):
        if values.numel() == 0:
            return values.to(torch.float32)
        z = -values.reshape(-1, values.shape[-1]).to(torch.float64) / epsilon
        ranks: Tensor = _Projection.apply(z)  # type: ignore[no-untyped-call]
        return ranks.to(torch.float32).reshape(values.shape)


@torch.no_grad()
def hard_rank(values: Tensor) -> Tensor:
    """Return the rank of every value in its row; 1 = the smallest, ties share their average rank.

    Args:
        values: (R, n); infinite ones are last.

    Returns:
        (R, n) float64.
    """
    if _on_host(values):
        order = torch.from_numpy(np.argsort(values.numpy(), axis=1))
        ordered = values.gather(1, order)
    else:
        ordered, order = values.sort(dim=1)
    begin = _begins(ordered)
    place = torch.arange(1, values.shape[1] + 1, device=values.device, dtype=torch.float64).expand(values.shape)
    means = _block_means(place, begin)
    return torch.empty_like(means).scatter_(1, order, means)


def _on_host(values: Tensor) -> bool:
    """Tell whether numba can have the values; a machine may lack it."""
    return values.device.type == "cpu" and importlib.util.find_spec("numba") is not None


def _on_gpu(values: Tensor) -> bool:
    """Tell whether Triton can have the values; it is missing on Windows, and older GPUs than Volta are not its own."""
    return (
        values.device.type == "cuda"
        and importlib.util.find_spec("triton") is not None
        and torch.cuda.get_device_capability(values.device) >= (7, 0)
    )


def _begins(ordered_Rn: Tensor) -> Tensor:
    """Return for every place where the run of values equal to its own begins, (R, n) int64."""
    place = torch.arange(ordered_Rn.shape[1], device=ordered_Rn.device)
    new = torch.ones_like(ordered_Rn, dtype=torch.bool)
    new[:, 1:] = ordered_Rn[:, 1:] != ordered_Rn[:, :-1]
    begin: Tensor = torch.where(new, place, 0).cummax(dim=1).values
    return begin


class _Projection(torch.autograd.Function):
    """Project rows onto the permutahedron of (n, ..., 1)."""

    @staticmethod
    def forward(ctx: Any, z_Rn: Tensor) -> Tensor:
        ranks: Tensor
        ranks, order, starts = _project(z_Rn)
        ctx.save_for_backward(order, starts)
        return ranks

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        order, starts = ctx.saved_tensors
        ordered = grads[0].gather(1, order)
        return torch.empty_like(ordered).scatter_(1, order, ordered - _block_means(ordered, starts))


@torch.library.custom_op("terrasieve::permutahedron", mutates_args=())
def _project(z_Rn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Project rows; return the ranks, and the descending order with the place where each one's block starts in it."""
    if _on_host(z_Rn):
        values = z_Rn.numpy()
        order = np.argsort(-values, axis=1)  # three times as fast as torch's sort
        pooled, begin = np.empty_like(values), np.empty_like(order)
        _pool()(values, order, pooled, begin)
        return torch.from_numpy(pooled), torch.from_numpy(order), torch.from_numpy(begin)
    ordered, descending = z_Rn.sort(dim=1, descending=True)
    if _on_gpu(z_Rn):
        from terrasieve.methods import isotonic

        with torch.cuda.device_of(z_Rn):  # type: ignore[no-untyped-call]
            ranks, starts = isotonic.project(ordered, descending)
        return ranks, descending, starts
    steps = torch.arange(z_Rn.shape[1], 0, -1, device=z_Rn.device, dtype=z_Rn.dtype)
    # Values more than n apart are never pooled: with wider gaps made n, those left out do not spoil the others' sums.
    gaps = (ordered[:, :-1] - ordered[:, 1:]).clamp(max=z_Rn.shape[1])
    targets = -torch.nn.functional.pad(gaps.cumsum(dim=1), (1, 0)) - steps
    parts = torch.split(targets, max(_CELLS // z_Rn.shape[1] ** 2, 1))
    fit = torch.cat([_min_max(part) for part in parts])
    starts = _begins(fit)
    # A block's ranks have a known sum: exact for blocks of one, whose rank is a whole number.
    within = ordered - _block_means(ordered, starts) + _block_means(steps.expand_as(fit), starts)
    return torch.empty_like(within).scatter_(1, descending, within), descending, starts


@_project.register_fake
def _(z_Rn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    order = torch.empty_like(z_Rn, dtype=torch.int64)
    return torch.empty_like(z_Rn), order, torch.empty_like(order)


def _min_max(targets_Rn: Tensor) -> Tensor:
    """Fit rows that never rise: at i, the least over starts j <= i of the largest mean from j to an end k >= i."""
    n = targets_Rn.shape[1]
    sums = torch.nn.functional.pad(targets_Rn.cumsum(dim=1), (1, 0))
    place = torch.arange(n, device=targets_Rn.device)
    length_nn = place[None] - place[:, None] + 1
    means_Rnn = (sums[:, None, 1:] - sums[:, :-1, None]) / length_nn
    outside = length_nn < 1
    best = means_Rnn.masked_fill_(outside, -torch.inf).flip(2).cummax(dim=2).values.flip(2)
    return best.masked_fill_(outside, torch.inf).amin(dim=1)


def _block_means(values_Rn: Tensor, starts_Rn: Tensor) -> Tensor:
    """Return for every place the mean of its block's values."""
    sums = torch.zeros_like(values_Rn).scatter_add_(1, starts_Rn, values_Rn)
    counts = torch.zeros_like(values_Rn).scatter_add_(1, starts_Rn, torch.ones_like(values_Rn))
    return (sums / counts.clamp_(min=1)).gather(1, starts_Rn)


@cache
def _pool() -> Any:
    """Return the compiled pooling of adjacent violators; a machine without numba takes the min-max formula."""
    import numba

    @numba.njit(nogil=True)
    def pool(z_Rn: np.ndarray, order_Rn: np.ndarray, ranks_Rn: np.ndarray, starts_Rn: np.ndarray) -> None:
        R, n = z_Rn.shape
        begin, mean = np.empty(n + 1, np.int64), np.empty(n)
        for r in range(R):
            z, order = z_Rn[r], order_Rn[r]
            blocks = 0
            for i in range(n):
                begin[blocks], mean[blocks] = i, z[order[i]] - (n - i)
                blocks += 1
                while blocks > 1 and mean[blocks - 2] <= mean[blocks - 1]:
                    before, last = begin[blocks - 1] - begin[blocks - 2], i + 1 - begin[blocks - 1]
                    mean[blocks - 2] += (mean[blocks - 1] - mean[blocks - 2]) * last / (before + last)
                    blocks -= 1
            begin[blocks] = n
            for b in range(blocks):
                start, stop = begin[b], begin[b + 1]
                first, rise = z[order[start]], 0.0
                for i in range(start, stop):
                    rise += z[order[i]] - first
                # Relative to the block's first value, so that a block of one has a whole number as its rank.
                base = n - (start + stop - 1) / 2 - rise / (stop - start)
                for i in range(start, stop):
                    ranks_Rn[r, order[i]] = z[order[i]] - first + base
                    starts_Rn[r, i] = start

    return pool
