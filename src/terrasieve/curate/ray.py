"""Ray: the engine of a cluster. The same functions over the same parts as ``engine.Local``, each a task of its own.

When a worker is lost, Ray gives its part to another one and does nothing else again; a part that ends its worker every
time comes back as ``LOST``. Needs the extra ``terrasieve[ray]``, terrasieve on every node, and paths that all of them
see. Source: Ray's documentation (``ray.remote``, fault tolerance of tasks).
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from itertools import islice
from typing import Any, TypeVar

from terrasieve.curate.engine import LOST, Lost
from terrasieve.errors import UserError

P = TypeVar("P")
R = TypeVar("R")
RETRIES = 2  # of a part whose worker is lost


class Ray:
    """Workers of the Ray cluster that is there (RAY_ADDRESS, or on this machine), else of one started here."""

    def __init__(self, workers: int | None = None) -> None:
        """Join the cluster, or start one.

        Args:
            workers: parts worked on at a time; None = one per core of the cluster.

        Raises:
            UserError: Ray is not installed.
        """
        # Or workers of a program that was started by `uv run` are started by `uv run` too, each node in a copy of the
        # working directory, imagery and all, and without the extras that are installed here.
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        try:
            import ray
        except ImportError as error:
            raise UserError(
                f"The engine ray needs Ray ({error}). Install it with: pip install 'terrasieve[ray]'; or use local."
            ) from error
        self.workers = workers
        if ray.is_initialized():
            return
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            ray.init(address="auto", **quiet)
        except ConnectionError:
            ray.init(num_cpus=workers, include_dashboard=False, **quiet)

    def run(self, work: Callable[[P], R], parts: Sequence[P]) -> Iterator[tuple[int, R | Lost]]:
        """Yield (number of the part, result) as they are done."""
        import ray
        from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError

        cloudpickle: Any = import_module("ray.cloudpickle")
        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        task = ray.remote(num_cpus=1, max_retries=RETRIES)(_do)
        pickled = ray.put(cloudpickle.dumps(work))
        left = iter(enumerate(parts))
        running: dict[Any, int] = {}
        try:
            while True:
                for number, part in islice(left, (self.workers or len(parts)) - len(running)):
                    running[task.remote(pickled, pickle.dumps(part))] = number
                if not running:
                    return
                (ref,), _ = ray.wait(list(running), num_returns=1)
                number = running.pop(ref)
                try:
                    yield number, _result(ray.get(ref))
                except (WorkerCrashedError, OutOfMemoryError, NodeDiedError):
                    yield number, LOST
        finally:
            for ref in running:
                ray.cancel(ref)


def _do(work: bytes, part: bytes) -> bytes:
    """Do a part. This function travels whole, so that a node without terrasieve can say that it lacks it."""
    try:
        return pickle.dumps((pickle.loads(work)(pickle.loads(part)), None))
    except Exception as error:  # a result too: Ray would put its own traceback around it
        return pickle.dumps((None, error))


def _result(pickled: bytes) -> Any:
    result, error = pickle.loads(pickled)
    if isinstance(error, ModuleNotFoundError):
        raise UserError(f"A node of the Ray cluster lacks terrasieve or a part of it ({error}); install it.")
    if error is not None:
        raise error
    return result
