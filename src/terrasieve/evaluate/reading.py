"""Reading: every image of a manifest once, in order, scored where it is read, by worker processes.

Between ``data`` and ``redundancy``. What is scored together depends on the rows alone, and every process computes with
one thread, so the number of workers does not change a bit of the result.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from terrasieve.batch import Batch
from terrasieve.curate.engine import cores
from terrasieve.data.augment import ImageSettings, normalise
from terrasieve.data.images import Images
from terrasieve.data.samples import WholeSamples, collate
from terrasieve.errors import UserError
from terrasieve.imagery.unreadable import UnreadableImage

CHUNK = 8  # images scored together; more, and the system takes a fifth of the time to fetch their memory anew

Score = Callable[[Batch], Any]


class Scored(NamedTuple):
    """What became of a run of rows.

    Attributes:
        rows: of the images.
        read: those that could be read, ascending.
        values: what was computed of them together; None when there is none.
        failed: row -> why it could not be read.
    """

    rows: range
    read: list[int]
    values: Any
    failed: dict[int, str]


def chunked(count: int, start: int = 0) -> list[range]:
    """Return rows ``start`` to ``count`` in runs of ``CHUNK``."""
    return [range(first, min(first + CHUNK, count)) for first in range(start, count, CHUNK)]


def over_images(
    images: Images,
    image: ImageSettings,
    score: Score,
    chunks: Sequence[range],
    workers: int | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Scored]:
    """Read, normalise and score runs of rows.

    Args:
        images: what to read.
        image: size, and each band's mean and standard deviation.
        score: of a normalised batch; runs in the workers unless ``device`` is another one.
        chunks: rows that are scored together.
        workers: processes; 0 = this one; None = one per core that this process may use.
        device: where to score.

    Raises:
        UserError: if a worker process dies, as of lack of memory.
    """
    workers = min(cores() if workers is None else workers, len(chunks))
    here = torch.device(device)
    dataset = _Chunks(images, image, chunks, score if here.type == "cpu" else None)
    loader: Iterable[Scored] = DataLoader(
        dataset,
        batch_size=None,
        collate_fn=_as_it_is,  # type: ignore[arg-type]
        num_workers=workers,
        worker_init_fn=_leave_signals_to_parent,
    )
    try:
        for scored in loader:
            if here.type != "cpu" and scored.read:
                with torch.inference_mode():
                    batch = normalise(scored.values.to(here), dataset.mean.to(here), dataset.std.to(here))
                    scored = scored._replace(values=score(batch))
            yield scored
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"A reading process died ({str(error).splitlines()[0]}), often of lack of memory. "
            "Go on with fewer workers; what was done is kept."
        ) from error


class _Chunks(Dataset[Scored]):
    """Runs of rows, read and, unless another device does it, scored."""

    def __init__(self, images: Images, image: ImageSettings, chunks: Sequence[range], score: Score | None) -> None:
        self.samples, self.chunks, self.score = WholeSamples(images, image), chunks, score
        self.mean, self.std = torch.tensor(image.mean), torch.tensor(image.std)

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, place: int) -> Scored:
        samples, failed = [], {}
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # in this process as in a worker: sums of more threads round otherwise
        try:
            for row in self.chunks[place]:
                try:
                    samples.append(self.samples[row])
                except UnreadableImage as error:
                    failed[row] = error.reason
            values = self._values(collate(samples)) if samples else None
        finally:
            torch.set_num_threads(threads)
        return Scored(self.chunks[place], [sample["index"] for sample in samples], values, failed)

    def _values(self, batch: Batch) -> Any:
        if self.score is None:
            return batch
        with torch.inference_mode():
            return self.score(normalise(batch, self.mean, self.std))


def _as_it_is(scored: Scored) -> Scored:
    return scored


def _leave_signals_to_parent(_worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the one that collects ends the others
