"""Loading: the rate at which the loader makes samples against the rate at which the model takes them.

An optional part of the bench, on a recipe and a manifest. The only part that reads files.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from terrasieve.batch import Batch
from terrasieve.bench.clock import seconds
from terrasieve.data.images import Images
from terrasieve.data.loader import train_batches
from terrasieve.train import distributed, state
from terrasieve.train.loop import train_step
from terrasieve.train.settings import TrainSettings


def measure_loading(settings: TrainSettings, images: Images, *, repeats: int = 5, warmup: int = 2) -> dict[str, Any]:
    """Measure images/s of a recipe's loader alone and of its model alone, on images in memory.

    Args:
        settings: a recipe; mean and std may be missing.
        images: what the manifest holds.
        repeats: model steps timed, the median is taken; the loader is timed over as many images, at least 512.
        warmup: model steps before.

    Returns:
        ``loader_images_per_s``, ``model_images_per_s``, their ``ratio``, ``workers``, ``threads``, ``batch_size`` and
        ``images_read``.
    """
    batches = max(repeats, -(-512 // settings.batch_size))
    channels = len(images.bands)
    known = {"mean": settings.image.mean or (0.0,) * channels, "std": settings.image.std or (1.0,) * channels}
    settings = settings.model_copy(update={"image": settings.image.model_copy(update=known)})
    loader_rate, batch = _loader_rate(settings, images, batches)
    model_rate = _model_rate(settings, batch, channels, repeats, warmup)
    return {
        "loader_images_per_s": loader_rate,
        "model_images_per_s": model_rate,
        "ratio": loader_rate / model_rate,
        "workers": settings.loader.workers,
        "threads": torch.get_num_threads(),
        "batch_size": settings.batch_size,
        "images_read": batches * settings.batch_size,
    }


def _loader_rate(settings: TrainSettings, images: Images, batches: int) -> tuple[float, Batch]:
    """Time ``batches`` once the workers have filled their queues and those have been emptied."""
    ahead = settings.loader.workers * settings.loader.prefetch + 1
    stream = train_batches(
        images,
        settings.image,
        settings.loader,
        seed=settings.seed,
        steps=range(2 * ahead + batches),
        batch_size=settings.batch_size,
    )
    batch = next(stream)
    for _ in range(ahead):
        next(stream)
    began = time.perf_counter()
    for _ in range(batches):
        next(stream)
    rate = batches * settings.batch_size / (time.perf_counter() - began)
    for _ in stream:
        pass
    return rate, batch


def _model_rate(settings: TrainSettings, batch: Batch, channels: int, repeats: int, warmup: int) -> float:
    with distributed.join(settings) as world:
        ready = state.build(settings, world, channels)
        on_device = batch.to(world.device)
        took = [
            seconds(lambda step=step: train_step(ready, on_device, step), world.device)  # type: ignore[misc]
            for step in range(warmup + repeats)
        ]
    return len(batch) / sorted(took[warmup:])[repeats // 2]
