"""FLOPs of a training step: matrix products, convolutions and attention, forward and backward, per image.

Counted by torch on one image on the CPU, where no compiled block hides what it does. torch's counter knows CUDA's fused
attention but not the CPU's, whose formulas are given here: 2 products forward, 5 backward. One multiply-add is 2 FLOP.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from terrasieve import keyed
from terrasieve.bench.contenders import Run, Setup, group_size
from terrasieve.data.augment import normalise


def _forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _backward(grad_out: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad_out, query, key, value))  # type: ignore[no-untyped-call]


CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}


def gflop_per_image(name: str, setup: Setup) -> float:
    """Count a contender's GFLOP per image, forward and backward; the optimiser's are not counted."""
    images = group_size(name)
    run = Run(name, replace(setup, precision="fp32", device="cpu", batch_size=images, compile="off"))
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    ready, draw = run.state, keyed.generator(0, "bench/flops")
    with counter:
        ready.model(normalise(run.batch, ready.mean, ready.std), draw).loss.backward()
    return counter.get_total_flops() / 1e9 / images
