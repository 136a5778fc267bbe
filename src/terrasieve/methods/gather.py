"""Gather: the rows of all processes one after another, with gradients.

For losses that set local samples against the whole global batch. Alone, a process gets back what it gave.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def processes() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process() -> int:
    """Return the number of this process among them, counted from 0."""
    return dist.get_rank() if processes() > 1 else 0


def gather_rows(local_B: Tensor) -> Tensor:
    """Lay the rows of all processes one after another, in the order of ranks: (B, ...) -> (processes x B, ...).

    The gradient of a row is summed over processes; every process gives as many rows.
    """
    if processes() == 1:
        return local_B
    rows: Tensor = _Gather.apply(local_B)  # type: ignore[no-untyped-call]
    return rows


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        whole = grads[0].contiguous()
        dist.all_reduce(whole)
        return whole.chunk(dist.get_world_size())[dist.get_rank()]
