"""Loader: batches in a keyed order, from any step on, for any number of workers and processes.

The last stage before the device. Order = f(seed, epoch): the stream of samples is one permutation of the images after
another, step s takes positions [s B, (s + 1) B) of it, and process r takes its share of those. So the step alone says
what a batch holds, and a resumed run reads on where it stopped.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch.utils.data import DataLoader, Sampler

from terrasieve.batch import Batch, Rows
from terrasieve.data import shards
from terrasieve.data.augment import ImageSettings
from terrasieve.data.batches import Batches, GlobalBatches, PlacedBatches, PlacedSampler, shuffles
from terrasieve.data.groups import Groups
from terrasieve.data.images import Images
from terrasieve.data.samples import TrainSamples, WholeSamples, collate
from terrasieve.data.truth import Truth
from terrasieve.errors import UserError
from terrasieve.remote import is_url
from terrasieve.section import Section

GRACE_S = 20  # that a worker goes on for after SIGTERM; a parent that was told to stop takes no further batch


class LoaderSettings(Section):
    """How images are read.

    Attributes:
        workers: reading processes per training process; 0 reads in the training process itself.
        prefetch: batches that each worker reads ahead.
        batches: which images make a batch: global = a shuffle of all; regional, mixed and balanced ones go by place
            (see ``data.batches``).
        order: uniform, or shards (a few at a time, see ``data.shards``); auto = shards where they lie at a URL, unless
            batches go by place.
        lanes: in the order ``shards``, how many are read at a time; divides the batch size, None = the batch size.
        on_damage: what an image does that its shard holds cut off or altered: skip = another one is drawn in its place,
            and it is listed; stop = the run ends.
        cache: folder for shards that lie at a URL; None = the user's cache folder.
        cache_gb: gigabytes that it may hold.
    """

    workers: int = Field(default=1, ge=0)
    prefetch: int = Field(default=4, ge=1)
    batches: Batches = GlobalBatches()
    order: Literal["auto", "uniform", "shards"] = "auto"
    lanes: int | None = Field(default=None, ge=1)
    on_damage: Literal["skip", "stop"] = "skip"
    cache: str | None = None
    cache_gb: float = Field(default=64.0, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.order == "shards" and not shuffles(self.batches):
            raise ValueError(
                f"order shards chooses images by their files, batches {self.batches.name} by their places; use order "
                "uniform"
            )
        return self


def settled(settings: LoaderSettings, images: Images) -> LoaderSettings:
    """Return the settings with ``order`` decided, so that a run whose shards are moved keeps its order."""
    if settings.order != "auto":
        return settings
    remote = any(shards.is_remote(uri) for uri in images.uris)
    return settings.model_copy(update={"order": "shards" if remote and shuffles(settings.batches) else "uniform"})


class StepSampler(Sampler[list[tuple[int, int]]]):
    """For each step the (epoch, index) of this process's samples."""

    def __init__(
        self,
        count: int,
        seed: int,
        steps: range,
        rows: tuple[int, int],
        batch_size: int,
        order: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        """Describe the stream.

        Args:
            count: images in the manifest.
            seed: of the order.
            steps: steps to yield batches for.
            rows: this process's share, [start, stop), of each global batch.
            batch_size: samples in a global batch.
            order: each epoch's permutation of the images; None = a uniform one.
        """
        self.count, self.steps, self.rows, self.batch_size = count, steps, rows, batch_size
        self.order = order or (lambda epoch: shards.uniform_order(count, seed, epoch))
        self._orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return map(self.keys, self.steps)

    def keys(self, step: int) -> list[tuple[int, int]]:
        """Return a step's (epoch, index)."""
        keys = []
        for position in range(step * self.batch_size + self.rows[0], step * self.batch_size + self.rows[1]):
            epoch, place = divmod(position, self.count)
            if epoch not in self._orders:
                self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
                self._orders[epoch] = self.order(epoch)
            keys.append((epoch, int(self._orders[epoch][place])))
        return keys


def train_batches(
    images: Images,
    image: ImageSettings,
    loader: LoaderSettings,
    *,
    seed: int,
    steps: range,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    truth: Truth | None = None,
    groups: Groups | None = None,
) -> Iterator[Batch]:
    """Yield this process's batch of each step, in digital numbers, on the host.

    Args:
        images: what to read.
        image: size and augmentation.
        loader: workers.
        seed: of order and augmentation.
        steps: e.g. ``range(40, 75)`` after a resume.
        batch_size: of the global batch; a multiple of ``world``.
        rank: this process, 0 <= rank < world.
        world: number of processes.
        truth: labels, masks and redundancy of the images.
        groups: gives every sample its neighbours.
    """
    share = batch_size // world
    rows = (rank * share, (rank + 1) * share)
    loader = settled(loader, images)
    lanes, order = loader.lanes or batch_size, None
    if loader.order == "shards" or any(shards.is_remote(uri) for uri in images.uris):
        files, of = shards.archives(images.uris)
        images = _with_cache(images, files, loader, lanes)
    if loader.order == "shards":
        order = partial(shards.shard_order, of, seed, batch_size=batch_size, lanes=lanes)
    sampler: Sampler[list[tuple[int, int]]] = StepSampler(len(images), seed, steps, rows, batch_size, order)
    if not shuffles(loader.batches):
        sampler = PlacedSampler(placed_batches(images, loader.batches, seed, batch_size), steps, rows)
    samples = TrainSamples(images, image, seed, truth, loader.on_damage, groups)
    for batch in _batches(samples, loader, batch_sampler=sampler):
        yield replace(batch, rows=Rows(rows[0], batch_size))


def placed_batches(images: Images, batches: Batches, seed: int, batch_size: int) -> PlacedBatches:
    """Make ready to draw batches by place."""
    rest = batch_size - batches.regional(batch_size)
    shuffled = StepSampler(len(images), seed, range(0), (0, rest), rest)
    return PlacedBatches(images.lon, images.lat, batches, seed, batch_size, shuffled.keys)


def _with_cache(images: Images, files: list[str], loader: LoaderSettings, lanes: int) -> Images:
    """Let shards at URLs be read through the cache, which has to hold those that are read at a time."""
    far = [file for file in files if is_url(file)]
    if not far:
        return images
    from terrasieve.data.shard_cache import ShardCache, default_folder

    limit, by_shard = int(loader.cache_gb * 1e9), loader.order == "shards"
    folder = Path(loader.cache) if loader.cache else default_folder()
    cache = ShardCache(folder, limit, strict=loader.on_damage == "stop")
    sizes = sorted(cache.size_of(far).values(), reverse=True)
    needed = sum(sizes[: lanes if by_shard else None])
    if needed > limit and not by_shard:
        return images  # shards would be fetched over and over: each image by its range
    if needed > limit:
        raise UserError(
            f"loader.cache_gb: {loader.cache_gb:g} GB do not hold the {lanes} shards that are read at a time, "
            f"{needed / 1e9:.3g} GB. Give loader.cache_gb more, or read fewer at a time with loader.lanes (it divides "
            "the batch size)."
        )
    return replace(images, cache=cache)


def whole_batches(
    images: Images,
    image: ImageSettings,
    loader: LoaderSettings,
    batch_size: int = 64,
    *,
    truth: Truth | None = None,
    rows: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Return batches of images, all in row order or those at ``rows``, whole and without augmentation."""
    return _batches(WholeSamples(images, image, truth), loader, batch_size=batch_size, sampler=rows)


def _leave_signals_to_parent(_worker: int) -> None:
    """Let Ctrl-C and SIGTERM, which reach all processes, stop training alone: it ends its step, then the workers.

    SIGTERM is obeyed in the end: a parent that crashes terminates its workers as it exits, and waits for them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_S))


def _batches(dataset: Any, settings: LoaderSettings, **how: Any) -> Iterator[Batch]:
    """Load batches; a mistake in the input found by a worker is the user's message, without the worker's traceback."""
    loader: DataLoader[Batch] = DataLoader(
        dataset,
        num_workers=settings.workers,
        prefetch_factor=settings.prefetch if settings.workers else None,
        collate_fn=collate,
        worker_init_fn=_leave_signals_to_parent,
        pin_memory=torch.cuda.is_available(),
        **how,
    )
    said, batches = "", iter(loader)
    try:
        yield from batches
    except UserError as error:
        said = str(error).rpartition(f"{UserError.__module__}.{UserError.__name__}: ")[2].rstrip()
    finally:  # not left to the collector, which may close the queues first and then wait ten seconds for the workers
        getattr(batches, "_shutdown_workers", lambda: None)()
    if said:  # raised out here, without the worker's error behind it, whose frames would keep the workers alive
        raise UserError(said)
