"""Processes: who am I under torchrun, and how the model is spread over them (DDP, or FSDP2 per block)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, cast
from weakref import WeakSet

import torch
import torch.distributed as dist
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from terrasieve.errors import UserError
from terrasieve.train.settings import LoopSettings

_WRAPPED: WeakSet[DistributedDataParallel] = WeakSet()


class World(NamedTuple):
    """This process among all: 0 <= rank < size; rank 0 writes."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes the log and the files."""
        return self.rank == 0


@contextmanager
def join(settings: LoopSettings) -> Iterator[World]:
    """Join the processes that torchrun started, or stand alone.

    Raises:
        UserError: if CUDA is asked for and absent, or the batch cannot be divided.
    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda is asked for, but torch sees none here; use device=auto or device=cpu.")
    cuda = settings.device != "cpu" and torch.cuda.is_available()
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if settings.batch_size % (size * settings.accumulate):
        raise UserError(
            f"batch_size {settings.batch_size} is not a multiple of {size} processes x accumulate "
            f"{settings.accumulate}; the nearest is "
            f"{max(round(settings.batch_size / (size * settings.accumulate)), 1) * size * settings.accumulate}."
        )
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if size > 1:
        dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield World(rank, size, device)
    finally:
        # A reducer that is the last to let go of the group joins gloo's threads while it holds the interpreter's lock,
        # and waits for ever if one of them still needs that lock to free a tensor (pytorch issue 56297).
        for model in _WRAPPED:
            del model.reducer, model.logger, model.process_group
        _WRAPPED.clear()
        if dist.is_initialized():
            dist.destroy_process_group()


def spread(method: nn.Module, settings: LoopSettings, world: World) -> nn.Module:
    """Move a method to its device, compile its blocks if wanted, and wrap it for several processes."""
    method = method.to(world.device)
    if world.size > 1 and world.device.type == "cuda":
        # Statistics of the global batch. On CPUs torch has none such: each process takes its own.
        method = cast(nn.Module, convert_sync_batchnorm(method))  # type: ignore[no-untyped-call]
    blocks = [block for name, block in method.named_modules() if name.rpartition(".")[0].endswith("blocks")]
    if settings.compile == "on" or (settings.compile == "auto" and world.device.type == "cuda"):
        for block in blocks:
            block.compile()
    if world.size == 1:
        return method
    if settings.parallel == "fsdp":
        for block in blocks:
            fully_shard(block)
        fully_shard(method)
        if hasattr(method, "predict"):
            register_fsdp_forward_method(method, "predict")  # or it would meet weights that are not gathered
        return method
    wrapped = DistributedDataParallel(method, device_ids=[world.device] if world.device.type == "cuda" else None)
    _WRAPPED.add(wrapped)
    return wrapped


def unsynchronised(model: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Hold gradient exchange back until the last micro-batch of a step."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    elif isinstance(model, DistributedDataParallel) and not last:
        return cast(AbstractContextManager[None], model.no_sync())
    return nullcontext()


def mean_over(world: World, values: Tensor) -> Tensor:
    """Average values over the processes, in place."""
    if world.size > 1:
        dist.all_reduce(values)
        values /= world.size
    return values


def any_of(world: World, flag: bool) -> bool:
    """Tell whether any process raises a flag; the host waits, so not in every step."""
    if world.size == 1:
        return flag
    raised = torch.tensor(float(flag), device=world.device)
    dist.all_reduce(raised)
    return bool(raised.item() > 0)


def gathered(world: World, items: list[Any]) -> list[Any]:
    """Put every process's list together, in the order of ranks; the host waits, so only at the end."""
    if world.size == 1:
        return items
    lists: list[Any] = [None] * world.size
    dist.all_gather_object(lists, items)
    return [item for part in lists for item in part]


def share(world: World, value: str) -> str:
    """Give every process rank 0's value."""
    if world.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
