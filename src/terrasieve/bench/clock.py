"""Clock: seconds of steps and of matrix products, and where within a step they go.

On the CPU by wall time, on CUDA by wall time around queued steps and by events within one. Used by ``run``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import Any

import torch

from terrasieve.bench.contenders import Run

PHASES = ("input", "selection", "encoder", "decoder", "loss", "backward", "optimiser")


def seconds(work: Callable[[], Any], device: torch.device, times: int = 1) -> float:
    """Time ``work`` once, averaged over ``times`` calls that the device may overlap with the host."""
    _wait(device)
    began = time.perf_counter()
    for _ in range(times):
        work()
    _wait(device)
    return (time.perf_counter() - began) / times


def matmul(dtype: torch.dtype, device: torch.device) -> tuple[Callable[[], Any], float]:
    """Return a large square matrix product to time, and its GFLOP."""
    n = 8192 if device.type == "cuda" else 2048
    draw = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(n, n, generator=draw, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out), 2 * n**3 / 1e9


def phase_shares(run: Run, repeats: int) -> dict[str, float] | None:
    """Split a step: share of each phase, medians over ``repeats`` steps; None for another library's model.

    ``input`` is normalising and cutting into patches, ``selection`` is HOG, PSTS and targets (or drawing ids),
    ``encoder`` and ``decoder`` are forward, ``optimiser`` is gradient norm, clipping and AdamW.
    """
    method: Any = run.state.method
    if not hasattr(method, "select"):
        return None
    stamps: dict[str, Any] = {}
    cuda = run.setup.device == "cuda"

    def mark(name: str) -> None:
        if cuda:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            stamps[name] = event
        else:
            stamps[name] = time.perf_counter()

    with _hooks(run, mark):
        steps = []
        for _ in range(repeats):
            mark("input")
            run.step()
            mark("end")
            _wait(torch.device(run.setup.device))
            edges = [stamps[name] for name in (*PHASES, "end")]
            steps.append([_between(a, b) for a, b in pairwise(edges)])
    totals = [sum(parts) for parts in steps]
    return {
        name: median(parts[i] / total for parts, total in zip(steps, totals, strict=True))
        for i, name in enumerate(PHASES)
    }


class _hooks:
    """Call ``mark`` where a phase begins; the last gradient to arrive ends the backward pass."""

    def __init__(self, run: Run, mark: Callable[[str], None]) -> None:
        self.run, self.mark = run, mark

    def __enter__(self) -> None:
        method: Any = self.run.state.method
        mark, select = self.mark, method.select

        def timed(*args: Any) -> Any:
            mark("selection")
            selection = select(*args)
            mark("encoder")
            return selection

        method.select = timed
        self.handles = [
            method.decoder.register_forward_pre_hook(lambda *_: mark("decoder")),
            method.decoder.register_forward_hook(lambda *_: mark("loss")),
            method.register_forward_hook(lambda *_: mark("backward")),
            *(
                parameter.register_post_accumulate_grad_hook(lambda _: mark("optimiser"))  # type: ignore[no-untyped-call]
                for parameter in self.run.state.parameters
            ),
        ]

    def __exit__(self, *_: object) -> None:
        method: Any = self.run.state.method
        del method.select
        for handle in self.handles:
            handle.remove()


def _between(a: Any, b: Any) -> float:
    return float(b - a if isinstance(a, float) else a.elapsed_time(b))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
