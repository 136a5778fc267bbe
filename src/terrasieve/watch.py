"""Watch a pretraining: a progress bar while it runs, and at its end what a person wants to know.

Used by the command line and by ``demo``; ``pretrain`` itself prints nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

from terrasieve import pretrain
from terrasieve.display import TrainingBar, err, out
from terrasieve.recipe import Recipe
from terrasieve.report import write_report
from terrasieve.train.distributed import World


def pretrain_watched(settings: Recipe, folder: Path, *, resume: bool = False, stop_at: int | None = None) -> bool:
    """Run a recipe with a progress bar, then write its report; tell whether it ended without an interruption."""
    leads = int(os.environ.get("RANK", 0)) == 0
    with TrainingBar() as bar:

        def start(world: World, found: Recipe, images: int, done: int) -> None:
            if world.leads:
                bands = ", ".join(found.image.bands or ())
                out.print(
                    f"{found.name}: {images:,} images ({bands}), steps {done:,} to {found.steps:,}, {folder}",
                    markup=False,
                )
                bar.start(done, found.steps)

        outcome = pretrain.pretrain(
            settings, folder, resume=resume, stop_at=stop_at, on_start=start, on_step=bar.step, on_log=bar.log
        )
    if leads:
        if outcome.skipped_images or outcome.skipped_steps:
            err.print(
                f"{outcome.skipped_images} unreadable image(s) were replaced, {outcome.skipped_steps} step(s) left out "
                f"because a gradient was not finite; {folder / 'log.jsonl'} lists them.",
                markup=False,
            )
        if outcome.step < settings.steps:
            what = "interrupted" if outcome.interrupted else "stopped"
            out.print(
                f"{what} after step {outcome.step}; go on with: terrasieve pretrain --resume {folder}", markup=False
            )
        out.print(f"report: {write_report(folder)}", markup=False)
    return not outcome.interrupted
