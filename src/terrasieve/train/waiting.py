"""Waiting: for how long the device has nothing to do because images come slower than the model takes them.

Between the loader's batches and ``loop``; ``writer`` logs its share of the time, ``watch`` says what would help. The
host is not made to wait for the answer: on CUDA it only asks, when a batch has come, whether all work was done already.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch

from terrasieve.batch import Batch

MUCH = 0.25  # share of the time; less is not worth a word


class Waiting:
    """Counts the seconds that a device waits for batches."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._seconds = device, 0.0

    def watched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches on; the first one, for which workers start, does not count.

        On CUDA a wait counts whole if the device had nothing to do at its end, so the figure is an upper bound.
        """
        first = True
        while True:
            queued = self._mark()
            began = time.monotonic()
            batch = next(batches, None)
            if batch is None:
                return
            if not first and (queued is None or queued.query()):  # type: ignore[no-untyped-call]
                self._seconds += time.monotonic() - began
            first = False
            yield batch

    def _mark(self) -> torch.cuda.Event | None:
        """Mark the end of what is queued on the device; None where steps are done when they return."""
        if self._device.type != "cuda":
            return None
        queued = torch.cuda.Event()  # type: ignore[no-untyped-call]
        queued.record()
        return queued

    def taken_s(self) -> float:
        """Return the seconds since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


def advice(share: float, workers: int, cores: int) -> str:
    """Say that training waits, and what to do.

    Args:
        share: of the time that the device waits, below 1.
        workers: that read for this process; with none, reading takes turns with training.
        cores: that this process may use.
    """
    needed = math.ceil(max(workers, share) / max(1 - share, 0.01))  # to read as fast as the model takes
    wanted = min(needed, cores)
    words = (
        f"training waits for images {100 * share:.0f} % of the time, with loader.workers={workers} on {cores} core(s)"
    )
    parts = [f"give loader.workers={wanted}"] if wanted > workers else []
    if needed > cores or not parts:
        parts.append("let images cost less to read (TIFFs in tiles, shards by terrasieve shard, files of their own)")
    return f"{words}; {', and '.join(parts)}"
