"""Optimiser and schedule: AdamW as MAE sets it up. Source: METHODS.md, section 1."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from terrasieve.train.settings import OptimSettings


def adamw(model: nn.Module, settings: OptimSettings) -> torch.optim.AdamW:
    """Build fused AdamW with weight decay on weights only: not on norms, biases, tokens and mixing weights."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            weight = parameter.ndim >= 2 and not name.endswith(("token", "pos_embed", "mix"))
            (decayed if weight else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=torch.tensor(0.0), betas=settings.betas, fused=True)


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
