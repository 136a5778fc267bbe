"""Family: ``terrasieve study`` in one process, in which every image is decoded once; for studies of many small runs.

The rows are the same, since a run depends on nothing but its recipe.
Run: python benchmarks/family.py recipes/studies/NAME.yaml -o DIR [key=value ...] [--only moco-*,*-georank] [--dry]
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from terrasieve.errors import UserError
from terrasieve.imagery import raster
from terrasieve.study.plan import load
from terrasieve.study.run import Progress, run_study
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="YAML file")
    parser.add_argument("overrides", nargs="*", help="key=value of the study, e.g. seeds=[0] or recipe.steps=100")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder; the same command goes on")
    parser.add_argument("--only", help="comma-separated arms, such as 'moco-*,*-georank'")
    parser.add_argument("--dry", action="store_true", help="every arm for five steps, one seed")
    args = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    raster.read = decode_once(raster.read)

    def tell(at: Progress) -> None:
        print(f"{datetime.now():%H:%M:%S} {at.done:>4} of {at.total}  {at.last}", flush=True)

    try:
        asked = load(args.study, args.overrides)
        asked = asked.only(args.only.split(",")) if args.only else asked
        asked, folder = (asked.dry(), args.output / "dry") if args.dry else (asked, args.output)
        studied = run_study(asked, folder, on_progress=tell, run_tasks=run_here)
    except UserError as error:
        sys.exit(str(error))
    print(studied.table)
    if studied.failed:
        sys.exit("\n".join([*studied.failed, "the same command does them again"]))
    sys.exit(130 if studied.interrupted else 0)


if __name__ == "__main__":
    main()
