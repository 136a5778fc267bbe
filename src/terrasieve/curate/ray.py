"""Ray: the engine of a cluster. The same functions over the same parts as ``engine.Local``, as a Ray Data pipeline.

A part is a block of its own, so that when a worker is lost Ray gives its part to another one and does nothing else
again; a part that ends its worker every time comes back as ``LOST``. Needs the extra ``terrasieve[ray]``, terrasieve on
every node, and paths that all of them see. Source: Ray's documentation (``ray.data.from_items``, ``DataContext``).
"""

from __future__ import annotations

import functools
import logging
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import pyarrow as pa

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
        try:
            import ray
            import ray.data
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
        import ray.data
        from ray import cloudpickle

        if not parts:
            return
        context = ray.data.DataContext.get_current()
        context.max_errored_blocks = -1  # whoever asked is told which part is lost, and decides
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]  # nodes without terrasieve can say so
        items = [{"number": number, "part": pickle.dumps(part)} for number, part in enumerate(parts)]
        done = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            functools.partial(_of_block, cloudpickle.dumps(work)),  # type: ignore[no-untyped-call]
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=1,
            ray_remote_args_fn=lambda: {"max_retries": RETRIES},  # Ray Data's own choice is without end
            compute=ray.data.TaskPoolStrategy(self.workers and min(self.workers, len(parts))),
        )
        left = set(range(len(parts)))
        for row in done.iter_rows():
            result, failed = pickle.loads(row["result"])
            if isinstance(result, ModuleNotFoundError):
                raise UserError(f"A node of the Ray cluster lacks terrasieve or a part of it ({result}); install it.")
            if failed:
                raise result
            left.discard(row["number"])
            yield row["number"], result
        yield from ((number, LOST) for number in sorted(left))


def _of_block(work: bytes, block: pa.Table) -> pa.Table:
    """Do the parts of a block; what the work raises is a result too, or Ray would put its own traceback around it."""
    results = []
    for part in block["part"].to_pylist():
        try:
            result = pickle.loads(work)(pickle.loads(part)), False
        except Exception as error:
            result = error, True
        results.append(pickle.dumps(result))
    return pa.table({"number": block["number"], "result": pa.array(results, pa.binary())})
