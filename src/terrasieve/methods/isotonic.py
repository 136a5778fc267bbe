"""Isotonic: the regression behind the soft rank on a GPU, as a Triton kernel of one program per row.

Imported by ``ranks`` for CUDA tensors alone, since it needs Triton. Runs of 1, 2, 4, ... values are merged pairwise.
Both runs of a pair never rise already, so merging pools the end of the left one with the beginning of the right one,
at the value v where what the left lacks to v equals what the right has above v. That balance rises with v, and is
linear between two fitted values: Newton's steps within a bracket find its root, exactly, as soon as they stay within
one piece. log2(n) merges of a few steps each over the whole row, where pooling adjacent violators takes 2 n one after
another; neither needs the n x n table of the min-max formula. Nothing waits for the host.

Source: ours, after Robertson, Wright & Dykstra 1988 (pooling of blocks in any order gives the one solution).

Legend: n values in a row; y fitted so far; low < v < high the bracket.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # values of a row that a program keeps in registers (4096 spill); longer rows are merged in memory
_NEWTON = tl.constexpr(8)  # steps after which every other one halves the bracket
_STEPS = tl.constexpr(160)  # by then the bracket has been halved to two neighbouring floats


def project(ordered_Rn: Tensor, order_Rn: Tensor, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """Project descending rows onto the permutahedron of (n, ..., 1).

    Args:
        ordered_Rn: contiguous float64, every row descending, on a CUDA device.
        order_Rn: contiguous int64, where every value stands in its unsorted row.
        block: values kept in registers, a power of 2.

    Returns:
        The ranks (R, n) float64, in the unsorted order, and for every value in the descending one the place where its
        block starts, (R, n) int64.
    """
    R, n = ordered_Rn.shape
    ranks, starts = torch.empty_like(ordered_Rn), torch.empty_like(order_Rn)
    block = min(block, triton.next_power_of_2(n))
    fit = torch.empty_like(ordered_Rn) if n > block else ordered_Rn  # unused where a row fits into the registers
    _project_row[(R,)](
        ordered_Rn, order_Rn, fit, ranks, starts, n,
        BLOCK=block, LEVELS=block.bit_length() - 1, LONG=n > block, num_warps=min(max(block // 128, 1), 8),
    )  # fmt: skip
    return ranks, starts


@triton.jit
def _project_row(ordered, order, fit, ranks, starts, n, BLOCK: tl.constexpr, LEVELS: tl.constexpr, LONG: tl.constexpr):
    """Fit one row block by block, merge the blocks in memory if there are several, and subtract the fit."""
    row = tl.program_id(0).to(tl.int64) * n
    ordered, order, fit, ranks, starts = ordered + row, order + row, fit + row, ranks + row, starts + row
    for at in range(0, n, BLOCK):
        place = at + tl.arange(0, BLOCK)
        inside = place < n
        z = tl.load(ordered + place, inside, 0.0)
        # What is beyond the row's end lies below everything, and so is never pooled.
        y = tl.where(inside, z - (n - place), float("-inf"))
        start = place
        for level in tl.static_range(LEVELS):
            y, start = _merge(y, start, at, 1 << level, BLOCK)
        tl.store(starts + place, start.to(tl.int64), inside)
        if LONG:
            tl.store(fit + place, y, inside)
        else:
            tl.store(ranks + tl.load(order + place, inside, 0), z - y, inside)
    if LONG:
        tl.debug_barrier()
        half = BLOCK
        while half < n:
            for first in range(0, n - half, 2 * half):
                _merge_in_memory(fit, starts, first, first + half, tl.minimum(first + 2 * half, n), BLOCK)
            half *= 2
        for at in range(0, n, BLOCK):
            place = at + tl.arange(0, BLOCK)
            inside = place < n
            rank = tl.load(ordered + place, inside, 0.0) - tl.load(fit + place, inside, 0.0)
            tl.store(ranks + tl.load(order + place, inside, 0), rank, inside)


@triton.jit
def _merge(y, start, at, HALF: tl.constexpr, BLOCK: tl.constexpr):
    """Merge every two neighbouring runs of ``HALF`` values in registers."""
    PAIRS: tl.constexpr = BLOCK // (2 * HALF)
    y = tl.reshape(y, (PAIRS, 2 * HALF))
    left = (tl.arange(0, 2 * HALF) < HALF)[None, :]
    low = tl.min(tl.where(left, y, float("inf")), 1)
    high = tl.max(tl.where(left, float("-inf"), y), 1)
    crossing = low < high
    v = (low + high) * 0.5
    moving, step = tl.max(crossing.to(tl.int32), 0), 0
    while (moving > 0) & (step < _STEPS):
        pooled = tl.where(left, y < v[:, None], y > v[:, None])
        mean = tl.sum(tl.where(pooled, y, 0.0), 1) / tl.sum(pooled.to(tl.float64), 1)
        new, low, high = _closer(v, low, high, mean, step)
        moving = tl.max((crossing & (new != v)).to(tl.int32), 0)
        v = tl.where(crossing, new, v)
        step += 1
    pooled = crossing[:, None] & tl.where(left, y < v[:, None], y > v[:, None])
    taken = tl.sum((pooled & left).to(tl.int32), 1)
    begin = at + tl.arange(0, PAIRS) * (2 * HALF) + HALF - taken
    start = tl.where(pooled, begin[:, None], tl.reshape(start, (PAIRS, 2 * HALF)))
    return tl.reshape(tl.where(pooled, v[:, None], y), (BLOCK,)), tl.reshape(start, (BLOCK,))


@triton.jit
def _merge_in_memory(fit, starts, first, middle, end, BLOCK: tl.constexpr):
    """Merge the run from ``first`` with the one from ``middle`` to ``end``, a block at a time."""
    low, high = tl.load(fit + middle - 1), tl.load(fit + middle)
    if low < high:
        v = (low + high) * 0.5
        moving, step, taken = (low < high).to(tl.int32), 0, 0
        while (moving > 0) & (step < _STEPS):
            total = tl.zeros((BLOCK,), tl.float64)
            count = tl.zeros((BLOCK,), tl.int32)
            of_left = tl.zeros((BLOCK,), tl.int32)
            for at in range(first, end, BLOCK):
                place = at + tl.arange(0, BLOCK)
                left = place < middle
                y = tl.load(fit + place, place < end, 0.0)
                pooled = (place < end) & tl.where(left, y < v, y > v)
                total += tl.where(pooled, y, 0.0)
                count += pooled.to(tl.int32)
                of_left += (pooled & left).to(tl.int32)
            mean = tl.sum(total, 0) / tl.sum(count, 0).to(tl.float64)
            taken = tl.sum(of_left, 0)
            new, low, high = _closer(v, low, high, mean, step)
            moving = (new != v).to(tl.int32)
            v = new
            step += 1
        for at in range(first, end, BLOCK):
            place = at + tl.arange(0, BLOCK)
            y = tl.load(fit + place, place < end, 0.0)
            pooled = (place < end) & tl.where(place < middle, y < v, y > v)
            tl.store(fit + place, tl.zeros((BLOCK,), tl.float64) + v, pooled)
            tl.store(starts + place, tl.zeros((BLOCK,), tl.int64) + (middle - taken), pooled)
        tl.debug_barrier()


@triton.jit
def _closer(v, low, high, mean, step):
    """Step to the mean of what is pooled at v if that lies within the bracket, else to the bracket's middle.

    The mean is the root of the linear piece that v lies on; where it is v itself, v is the root.
    """
    low, high = tl.where(mean > v, v, low), tl.where(mean < v, v, high)
    newton = (mean > low) & (mean < high) & ((step < _NEWTON) | (step % 2 == 0))
    return tl.where(newton | (mean == v), mean, (low + high) * 0.5), low, high
