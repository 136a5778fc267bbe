"""Family: ``study.py`` in one process, in which every image is decoded once; for studies of thousands of small runs.

As ``study.py``; the rows it writes are the same, since a run depends on nothing but its recipe. ``--only`` runs the
arms whose names match, such as ``--only moco-*,*-georank``; the others stay as they are.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import study

from terrasieve.errors import UserError
from terrasieve.imagery import raster
from terrasieve.sweep.isolate import Ending, Task

HELD = 20_000  # decoded images


def run_here(
    tasks: Sequence[Task], side_by_side: int, stopped: Callable[[], bool], on_end: Callable[[Task, Ending], None]
) -> bool:
    """Run tasks in turn, as ``isolate.run_all`` does, but in this process."""
    for task in tasks:
        if stopped():
            return False
        began = time.monotonic()
        try:
            ending = Ending("done", "", 0.0, task.function(*task.arguments))
        except KeyboardInterrupt:
            return False
        except UserError as error:
            ending = Ending("failed", str(error), 0.0)
        except Exception as error:
            traceback.print_exc()
            ending = Ending("failed", f"{type(error).__name__}: {error}", 0.0)
        on_end(task, Ending(ending.state, ending.message, time.monotonic() - began, ending.result))
    return True


def decode_once(read: Callable[..., raster.Pixels]) -> Callable[..., raster.Pixels]:
    """Keep what ``raster.read`` decodes; handed out read-only, so that nobody changes it."""

    @functools.lru_cache(HELD)
    def kept(*key: Any) -> raster.Pixels:
        pixels = read(*key)
        pixels.array.setflags(write=False)
        return pixels

    return lambda uri, window=None, bands=None: kept(uri, window, bands)


def main() -> None:
    only = None
    if "--only" in sys.argv:
        at = sys.argv.index("--only")
        only = sys.argv[at + 1].split(",")
        del sys.argv[at : at + 2]
    load = study.load

    def chosen(path: str, overrides: Sequence[str] = ()) -> study.Study:
        whole = load(path, overrides)
        if only is None:
            return whole
        arms = {arm: what for arm, what in whole.arms.items() if any(fnmatch.fnmatch(arm, one) for one in only)}
        return whole.model_copy(update={"arms": arms})

    study.load, study.run_all = chosen, run_here
    raster.read = decode_once(raster.read)
    study.torch.set_num_threads(1)
    study.main()


if __name__ == "__main__":
    main()
