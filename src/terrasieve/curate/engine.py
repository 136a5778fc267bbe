"""Engine: runs a function over the parts of a manifest, in worker processes here (``Local``) or on a cluster (``ray``).

A part that ends its process (a decoder that crashes) is tried once more alone, and comes back as ``LOST`` when it does
so again, so that it costs no other part. Used by scanning, hashing, verification and export.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from typing import Any, Protocol, TypeVar

from terrasieve.errors import UserError

P = TypeVar("P")
R = TypeVar("R")


class Lost:
    """In place of a result: the part ended its process twice."""


LOST = Lost()


class Engine(Protocol):
    """What runs functions over parts."""

    def run(self, work: Callable[[P], R], parts: Sequence[P]) -> Iterator[tuple[int, R | Lost]]:
        """Yield (number of the part, what ``work`` returned for it) as they are done, in any order.

        Args:
            work: a function that pickles; what it raises is raised here.
            parts: pickled too.
        """
        ...


class Local:
    """Worker processes on this machine; with one worker or one part the work is done in this process."""

    def __init__(self, workers: int | None = None) -> None:
        """Choose the number of processes; None = one per core that this process may use."""
        self.workers = workers or cores()

    def run(self, work: Callable[[P], R], parts: Sequence[P]) -> Iterator[tuple[int, R | Lost]]:
        """Yield (number of the part, result) as they are done."""
        if self.workers == 1 or len(parts) == 1:
            yield from ((number, work(part)) for number, part in enumerate(parts))
            return
        left = dict(enumerate(parts))
        try:
            with _pool(self.workers) as pool:
                for number, result in _unordered(pool, work, left):
                    del left[number]
                    yield number, result
        except BrokenProcessPool:
            for number, part in left.items():
                yield number, _alone(work, part)


def cores() -> int:
    """Return the number of cores that this process may use, which in a container can be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def engine_of(name: str, workers: int | None = None) -> Engine:
    """Return an engine by its name.

    Args:
        name: local, or ray (the extra ``terrasieve[ray]``): a cluster that is there, else one started on this machine.
        workers: parts worked on at a time; None = one per core.

    Raises:
        UserError: no such engine, or Ray is not installed.
    """
    if name == "local":
        return Local(workers)
    if name == "ray":
        from terrasieve.curate.ray import Ray

        return Ray(workers)
    raise UserError(f"There is no engine {name!r}; there are local and ray.")


def _pool(workers: int) -> ProcessPoolExecutor:
    """Make a pool whose processes never see Ctrl-C, which reaches all of a terminal's: this one alone decides then."""
    if hasattr(signal, "pthread_sigmask"):  # what is blocked is inherited, so from their first instruction on
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    context = multiprocessing.get_context("forkserver")
    return ProcessPoolExecutor(workers, context, signal.signal, (signal.SIGINT, signal.SIG_IGN))


def _unordered(pool: ProcessPoolExecutor, work: Callable[[P], R], parts: dict[int, P]) -> Iterator[tuple[int, R]]:
    numbers: dict[Future[Any], int] = {pool.submit(work, part): number for number, part in parts.items()}
    try:
        for future in as_completed(numbers):
            yield numbers[future], future.result()
    finally:
        for future in numbers:
            future.cancel()


def _alone(work: Callable[[P], R], part: P) -> R | Lost:
    try:
        with _pool(1) as pool:
            return pool.submit(work, part).result()
    except BrokenProcessPool:
        return LOST
