"""Loader: batches in a keyed order, from any step on, for any number of workers and processes.

The last stage before the device. Order = f(seed, epoch): the stream of samples is one permutation of the images after
another, step s takes positions [s B, (s + 1) B) of it, and process r takes its share of those. So the step alone says
what a batch holds, and a resumed run reads on where it stopped.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch.utils.data import DataLoader, Sampler

from terrasieve import keyed
from terrasieve.batch import Batch, Rows
from terrasieve.data.augment import ImageSettings
from terrasieve.data.groups import Groups
from terrasieve.data.images import Images
from terrasieve.data.samples import TrainSamples, WholeSamples, collate
from terrasieve.data.truth import Truth
from terrasieve.errors import UserError
from terrasieve.section import Section

GRACE_S = 20  # that a worker goes on for after SIGTERM; a parent that was told to stop takes no further batch


class LoaderSettings(Section):
    """How images are read.

    Attributes:
        workers: reading processes per training process; 0 reads in the training process itself.
        prefetch: batches that each worker reads ahead.
    """

    workers: int = Field(default=1, ge=0)
    prefetch: int = Field(default=4, ge=1)


class StepSampler(Sampler[list[tuple[int, int]]]):
    """For each step the (epoch, index) of this process's samples."""

    def __init__(self, count: int, seed: int, steps: range, rows: tuple[int, int], batch_size: int) -> None:
        """Describe the stream.

        Args:
            count: images in the manifest.
            seed: of the order.
            steps: steps to yield batches for.
            rows: this process's share, [start, stop), of each global batch.
            batch_size: samples in a global batch.
        """
        self.count, self.seed, self.steps, self.rows, self.batch_size = count, seed, steps, rows, batch_size

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        orders: dict[int, np.ndarray] = {}
        for step in self.steps:
            positions = range(step * self.batch_size + self.rows[0], step * self.batch_size + self.rows[1])
            keys = []
            for epoch, place in (divmod(position, self.count) for position in positions):
                if epoch not in orders:
                    orders = {e: order for e, order in orders.items() if e == epoch - 1}
                    orders[epoch] = keyed.numpy_generator(self.seed, "order", epoch).permutation(self.count)
                keys.append((epoch, int(orders[epoch][place])))
            yield keys


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
    sampler = StepSampler(len(images), seed, steps, rows, batch_size)
    for batch in _batches(TrainSamples(images, image, seed, truth, groups=groups), loader, batch_sampler=sampler):
        yield replace(batch, rows=Rows(rows[0], batch_size))


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
    said = ""
    try:
        yield from loader
    except UserError as error:
        said = str(error).rpartition(f"{UserError.__module__}.{UserError.__name__}: ")[2].rstrip()
    if said:  # raised out here, without the worker's error behind it, whose frames would keep the workers alive
        raise UserError(said)
