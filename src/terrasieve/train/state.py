"""State: everything a training step works on, built from the settings.

Between ``settings`` and ``loop``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from terrasieve import methods
from terrasieve.data.augment import ImageSettings
from terrasieve.data.mix import Mix
from terrasieve.nn.convolution import encoder_of
from terrasieve.train import distributed
from terrasieve.train.distributed import World
from terrasieve.train.optim import optimiser, peak_lr
from terrasieve.train.settings import AdaptSettings, LoopSettings, TrainSettings


@dataclass
class State:
    """What a step works on.

    Attributes:
        mix: how samples are mixed with each other; None = not at all.
        method: the module as built; ``model`` is the same, spread over the processes.
        peak: learning rate at the top of the schedule.
        dtype: what matrix products are computed in.
        skipped: () tensor on the device, steps left out because a gradient was not finite.
        statistics: running statistics of batch norms, which change in the forward pass already.
    """

    settings: LoopSettings
    world: World
    mix: Mix | None
    method: methods.Method
    model: nn.Module
    optimizer: torch.optim.Optimizer
    parameters: list[nn.Parameter]
    peak: float
    dtype: torch.dtype
    mean: Tensor
    std: Tensor
    skipped: Tensor
    statistics: list[Tensor]

    @property
    def sample(self) -> ImageSettings:
        """What samples are read as: the recipe's image, larger where a method predicts finer than the encoder sees."""
        return self.settings.image.enlarged(getattr(self.settings, "enlarged", 1))

    def autocast(self) -> torch.autocast:
        """Compute matrix products in the run's precision."""
        return torch.autocast(self.world.device.type, self.dtype, enabled=self.dtype != torch.float32)


@contextmanager
def evaluating(state: State) -> Iterator[None]:
    """Leave out gradients and what a model does in training only, and go back to training afterwards."""
    state.model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        state.model.train()


def precision(settings: LoopSettings, device: torch.device) -> torch.dtype:
    """Choose the type of matrix products: bf16 where the hardware computes in it, unless the recipe says."""
    if settings.precision != "auto":
        return torch.bfloat16 if settings.precision == "bf16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def build(settings: TrainSettings | AdaptSettings, world: World, channels: int) -> State:
    """Build encoder, method and optimiser from the settings, in which mean, std and the number of classes are given."""
    encoder = encoder_of(settings.encoder, channels, settings.image.shape_px, settings.seed, settings.image.bands)
    geography = settings.geography if isinstance(settings, TrainSettings) else None
    return around(methods.build(settings.method, encoder, settings.seed, geography), settings, world)


def around(method: nn.Module, settings: LoopSettings, world: World) -> State:
    """Build what a step needs around a method that exists; ``bench`` puts other libraries' models through it too."""
    adapts = settings if isinstance(settings, AdaptSettings) else None
    model = distributed.spread(method, settings, world)
    optimizer = optimiser(model, settings.optim, adapts.layer_decay if adapts else 1.0)
    kind = cast(methods.Method, method)
    place = {"dtype": torch.float32, "device": world.device}
    return State(
        settings=settings,
        world=world,
        mix=_mix(adapts) if adapts else None,
        method=kind,
        model=model,
        optimizer=optimizer,
        parameters=[p for group in optimizer.param_groups for p in group["params"]],
        peak=peak_lr(settings.optim, settings.batch_size, kind.lr_scale),
        dtype=precision(settings, world.device),
        mean=torch.tensor(settings.image.mean, **place),  # type: ignore[arg-type]
        std=torch.tensor(settings.image.std, **place),  # type: ignore[arg-type]
        skipped=torch.zeros((), device=world.device),
        statistics=[
            buffer
            for module in model.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            for buffer in module.buffers(recurse=False)
        ],
    )


def _mix(settings: AdaptSettings) -> Mix | None:
    if not (settings.mixup or settings.cutmix):
        return None
    return Mix(settings.mixup, settings.cutmix, settings.method.classes, settings.seed)
