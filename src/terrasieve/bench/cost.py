"""Cost: what a supervised method's training and inference take at each share of dropped patches, as measured.

Beside ``run``, which compares methods; this compares settings of one, for the sweep. Whole steps and whole predictions
on real images, since how many patches are kept may depend on what they show: scoring, selection and packing included.
All settings take turns in one process, so that what disturbs one round disturbs everyone in it.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from terrasieve import keyed
from terrasieve.batch import Batch
from terrasieve.bench.clock import seconds
from terrasieve.bench.flops import CPU_ATTENTION
from terrasieve.bench.memory import high_water_kb
from terrasieve.data.augment import normalise
from terrasieve.methods import Adapter
from terrasieve.sieve.ragged import Ragged
from terrasieve.train import state
from terrasieve.train.checkpoint import read_weights
from terrasieve.train.distributed import World
from terrasieve.train.loop import train_step
from terrasieve.train.settings import AdaptSettings
from terrasieve.train.state import State, evaluating

Part = Literal["train", "inference"]
PARTS: tuple[Part, ...] = ("train", "inference")
MEMORY_STEPS = 2  # AdamW's moments appear in the first
MEMORY_NOTE = "growth of a process's resident memory over two steps, weights included, after a step on two images"


class Contender:
    """A setting of a method, ready to train and to predict.

    Attributes:
        kept: shares of the patches that were encoded in each call since it was last emptied.
    """

    def __init__(self, settings: AdaptSettings, channels: int, device: str, weights: Path | None = None) -> None:
        """Build the model; mean, std and classes are given in the settings, weights as a run keeps them."""
        self.state: State = state.build(settings, World(0, 1, torch.device(device)), channels)
        if weights is not None:
            read_weights(weights, self.state.model)
        self.trained = weights is not None
        self.kept: list[float] = []
        self.steps = 0
        encoder = cast(Any, self.state.method.encoder)
        encode_kept = encoder.encode_kept

        def counted(patches_BNP: Tensor, kept: Tensor | Ragged | None, *args: Any, **more: Any) -> Any:
            whole = patches_BNP.shape[0] * patches_BNP.shape[1]
            count = whole if kept is None else len(kept.ids_T) if isinstance(kept, Ragged) else kept.numel()
            self.kept.append(count / whole)
            return encode_kept(patches_BNP, kept, *args, **more)

        encoder.encode_kept = counted

    def ready_for(self, part: Part, batch: Batch) -> None:
        """Train one step where weights are not trained: dynamic dropping learns its threshold while training."""
        if part == "inference" and not self.trained:
            self.train(batch)
            self.state.optimizer.state.clear()

    def train(self, batch: Batch) -> None:
        """Do one training step: forward, backward, gradient norm, clipping, AdamW."""
        train_step(self.state, batch, self.steps)
        self.steps += 1

    def inference(self, batch: Batch) -> None:
        """Predict one batch."""
        ready = self.state
        draw = keyed.generator(ready.settings.seed, "predict", 0, device=ready.world.device)
        with evaluating(ready), ready.autocast():
            cast(Adapter, ready.method).predict(normalise(batch, ready.mean, ready.std), draw)


def measure_rates(
    contenders: Sequence[AdaptSettings],
    batches: Sequence[Batch],
    part: Part,
    *,
    weights: Sequence[Path | None] | None = None,
    device: str = "cpu",
    rounds: int = 5,
    warmup: int = 2,
) -> list[dict[str, Any]]:
    """Measure images/s of training steps or of predictions, and count FLOPs.

    Args:
        contenders: recipes that differ in what is dropped; the first is what speed-ups are against.
        batches: real images with their truth, in digital numbers, on the host; round r uses the r-th, all the same.
        part: "train" or "inference".
        weights: a run's ``model.safetensors`` for each; None = as initialised.
        device: "cpu" or "cuda".
        rounds: turns of everyone; medians are returned.
        warmup: calls of each before them.

    Returns:
        For each contender ``images_per_s``, ``speed_up`` (median of the rounds' own ratios), ``kept_share`` of the
        patches, ``gflop_per_image`` and ``seconds`` of each round.
    """
    place, channels = torch.device(device), batches[0].image.shape[1]
    files = weights or [None] * len(contenders)
    flops = [gflop_per_image(one, batches[0], part, file) for one, file in zip(contenders, files, strict=True)]
    ready = [Contender(one, channels, device, file) for one, file in zip(contenders, files, strict=True)]
    there = [batch.to(place) for batch in batches]
    for one in ready:
        one.ready_for(part, there[0])
        for turn in range(warmup):
            getattr(one, part)(there[turn % len(there)])
        one.kept.clear()
    took: list[list[float]] = [[] for _ in ready]
    for turn in range(rounds):
        batch = there[turn % len(there)]
        for one, mine in zip(ready, took, strict=True):
            mine.append(seconds(partial(getattr(one, part), batch), place))
    size = len(batches[0])
    return [
        {
            "images_per_s": size / median(mine),
            "speed_up": median(a / b for a, b in zip(took[0], mine, strict=True)),
            "kept_share": fmean(one.kept),
            "gflop_per_image": count,
            "seconds": mine,
        }
        for one, mine, count in zip(ready, took, flops, strict=True)
    ]


def gflop_per_image(settings: AdaptSettings, batch: Batch, part: Part, weights: Path | None = None) -> float:
    """Count GFLOP per image: matrix products, convolutions and attention, as torch counts them on the CPU.

    Args:
        settings: the recipe; counted in fp32, uncompiled.
        batch: real images; a training step includes the backward pass, not the optimiser.
        part: "train" or "inference".
        weights: of a run.
    """
    plain = settings.model_copy(update={"precision": "fp32", "compile": "off", "device": "cpu"})
    one = Contender(plain, batch.image.shape[1], "cpu", weights)
    one.ready_for(part, batch)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        getattr(one, part)(batch)
    return float(counter.get_total_flops()) / 1e9 / len(batch)


def peak_mb(
    settings: AdaptSettings, batch: Batch, part: Part, device: str = "cpu", weights: Path | None = None
) -> float:
    """Measure the peak memory of training steps or of predictions, weights included, in MB (10^6 bytes).

    Args:
        settings: the recipe.
        batch: real images.
        part: "train" or "inference".
        device: on "cpu", how far this process's resident memory grows: call it in a fresh process, once, since what
            was freed before would be used again. On "cuda", what torch allocated at most.
        weights: of a run.
    """
    few = batch.part(0, 2).to(torch.device(device))
    warm = Contender(settings, batch.image.shape[1], device, weights)
    warm.ready_for(part, few)
    getattr(warm, part)(few)  # what is loaded for a first step is not the model's
    del warm
    before = _settled_mb(device)
    one, there = Contender(settings, batch.image.shape[1], device, weights), batch.to(torch.device(device))
    one.ready_for(part, few)
    for _ in range(MEMORY_STEPS):
        getattr(one, part)(there)
    return _peak_mb(device) - before


def _settled_mb(device: str) -> float:
    """Give back what nobody uses, forget the peak so far, and return what is left."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError, AttributeError):  # Linux and glibc; elsewhere an earlier peak stays
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
    return _peak_mb(device)


def _peak_mb(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / 1e6
    return high_water_kb() * 1024 / 1e6
