"""Optimiser and schedule: AdamW as MAE sets it up, Adam, SGD and LARS. Source: METHODS.md, sections 1 and 5."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor, nn

from terrasieve.train.lars import LARS, start_momentum
from terrasieve.train.settings import OptimSettings

BLOCK = re.compile(r"encoder\.vit\.blocks\.(\d+)\.")


def optimiser(model: nn.Module, settings: OptimSettings, layer_decay: float = 1.0) -> torch.optim.Optimizer:
    """Build the optimiser, with weight decay on weights only: not on norms, biases, tokens and mixing weights.

    All of them leave weights and state alone where their attribute ``found_inf`` is 1, without the host having to know.

    Args:
        model: to be trained, whole or spread over processes.
        settings: name, decay, betas and momentum.
        layer_decay: below 1, there is a pair of groups per block, and each has a ``lr_factor``: 1 for what stands above
            the encoder's blocks, ``layer_decay`` less per block down to the embedding (BEiT's and MAE's fine-tuning).
    """
    above = 2 + max((int(match[1]) for name, _ in model.named_parameters() if (match := BLOCK.search(name))), default=0)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            weight = parameter.ndim >= 2 and not name.endswith(("token", "pos_embed", "mix"))
            layer = _layer(name, above) if layer_decay < 1 else above
            group = {"params": [], "weight_decay": settings.weight_decay if weight else 0.0}
            group |= {"trust": settings.trust if weight else 0.0} if settings.name == "lars" else {}
            group |= {"lr": torch.tensor(0.0), "lr_factor": layer_decay ** (above - layer)} if layer_decay < 1 else {}
            groups.setdefault((-layer, not weight), group)["params"].append(parameter)
    ordered = [groups[key] for key in sorted(groups)]
    lr = torch.tensor(0.0)
    match settings.name:
        case "adamw":
            return torch.optim.AdamW(ordered, lr=lr, betas=settings.betas, fused=True)
        case "adam":
            return torch.optim.Adam(ordered, lr=lr, betas=settings.betas, fused=True)
        case "lars":
            return LARS(ordered, lr=lr, momentum=settings.momentum)
    sgd = torch.optim.SGD(ordered, lr=lr, momentum=settings.momentum, fused=True)
    start_momentum(sgd)
    return sgd


def _layer(name: str, above: int) -> int:
    """Count layers from the patch embedding, 0, over the blocks to what stands ``above`` them."""
    block = BLOCK.search(name)
    if block:
        return int(block[1]) + 1
    return 0 if "encoder.vit." in name and not name.rpartition("encoder.vit.")[2].startswith("norm.") else above


def peak_lr(settings: OptimSettings, batch_size: int, method_scale: float) -> float:
    """Return the learning rate at the top of the schedule: base x batch / 256 x the method's own factor."""
    return settings.base_lr * batch_size / 256 * method_scale


def lr_at(step: int, steps: int, settings: OptimSettings, peak: float) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine down to ``min_lr`` x peak."""
    warmup = round(settings.warmup * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    share = (step - warmup) / max(steps - warmup, 1)
    return peak * (settings.min_lr + (1 - settings.min_lr) * 0.5 * (1 + math.cos(math.pi * share)))


def gradient_norm(parameters: list[nn.Parameter], clip: float | None) -> Tensor:
    """Return the norm of all gradients, and scale them down to ``clip`` if they exceed it. Does not wait."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    if clip is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    return norm
