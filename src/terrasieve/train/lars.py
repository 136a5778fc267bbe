"""LARS: SGD with momentum whose rate is scaled, weight by weight, to the weight's own length; torch has none.

For SimCLR and BYOL. Source: You, Gitman & Ginsburg 2017; biases and norms are left out of scaling and decay, as
SimCLR and BYOL do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling.

    For each weight w with gradient g: g = g + decay x w; g = g x trust x |w| / |g| unless either length is 0;
    v = momentum x v + g; w = w - rate x v. Groups with ``trust`` 0 are plain SGD with momentum.
    Where ``found_inf`` is 1, nothing changes, without the host having to know.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: Tensor,
        momentum: float = 0.9,
        trust: float = 0.001,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(list(params), {"lr": lr, "momentum": momentum, "trust": trust, "weight_decay": weight_decay})
        start_momentum(self)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Do one step."""
        for group in self.param_groups:
            weights = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not weights:
                continue
            grads: list[Tensor] = [parameter.grad for parameter in weights]
            keep: Tensor | float = 1.0
            momentum: Tensor | float = group["momentum"]
            if self.found_inf is not None:
                bad = self.found_inf > 0
                grads = [torch.where(bad, 0.0, grad) for grad in grads]
                keep = 1 - self.found_inf
                momentum = torch.where(bad, 1.0, momentum)
            if group["weight_decay"]:
                grads = list(torch._foreach_add(grads, weights, alpha=group["weight_decay"]))
            if group["trust"]:
                grads = list(torch._foreach_mul(grads, _ratios(weights, grads, group["trust"])))
            velocities = [self.state[weight]["momentum_buffer"] for weight in weights]
            torch._foreach_mul_(velocities, momentum)
            torch._foreach_add_(velocities, torch._foreach_mul(grads, keep))
            rate = group["lr"].to(weights[0].device, non_blocking=True)
            torch._foreach_sub_(weights, torch._foreach_mul(velocities, rate * keep))


def start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give every weight a velocity of 0, so that a first step that is left out leaves something defined behind."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _ratios(weights: list[Tensor], grads: list[Tensor], trust: float) -> list[Tensor]:
    """Return trust x |w| / |g| of each weight, 1 where either is 0."""
    lengths = zip(torch._foreach_norm(weights), torch._foreach_norm(grads), strict=True)
    return [torch.where((w > 0) & (g > 0), trust * w / g.clamp(min=1e-30), 1.0) for w, g in lengths]
