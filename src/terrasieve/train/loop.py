"""The loop: batch -> learning rate -> micro-batches -> clip -> step -> validate, log, picture, checkpoint when due.

The heart of training, of pretraining and fine-tuning alike: ``recipe`` and the command line stand after it, ``data``
and ``methods`` before. Masks are keyed
by the step, so a run that was stopped anywhere and resumed gives bitwise the same weights on a CPU. Nothing inside a
step waits for the device; whether gradients are finite is decided on the device too.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from terrasieve import keyed
from terrasieve.batch import Batch
from terrasieve.data.augment import normalise
from terrasieve.data.groups import Groups
from terrasieve.data.images import Images
from terrasieve.data.loader import train_batches
from terrasieve.data.truth import Truth
from terrasieve.train import checkpoint, distributed
from terrasieve.train.optim import gradient_norm, lr_at
from terrasieve.train.state import State
from terrasieve.train.trial import Trial
from terrasieve.train.writer import Writer


@dataclass(frozen=True)
class Outcome:
    """How a run ended: steps done, whether it was interrupted, images that could not be read, steps left out."""

    step: int
    interrupted: bool
    skipped_images: int
    skipped_steps: int


def train_step(state: State, batch: Batch, step: int) -> dict[str, Tensor]:
    """Do one optimiser step on this process's share of the global batch.

    Args:
        state: is changed in place.
        batch: on the device, in digital numbers.
        step: counted from 0; keys the masks.

    Returns:
        ``loss``, ``grad_norm`` and the method's metrics, () tensors on the device.
    """
    settings = state.settings
    lr = lr_at(step, settings.steps, settings.optim, state.peak)
    for group in state.optimizer.param_groups:
        group["lr"].fill_(lr * group.get("lr_factor", 1.0))
    metrics: dict[str, Tensor] = {}
    before = [statistic.clone() for statistic in state.statistics]
    size = len(batch) // settings.accumulate
    for part in range(settings.accumulate):
        micro = normalise(batch.part(part * size, (part + 1) * size), state.mean, state.std)
        micro = replace(micro, progress=step / settings.steps)
        micro = micro if state.mix is None else state.mix(micro, step)
        draw = keyed.generator(settings.seed, "mask", step, device=state.world.device)
        with distributed.unsynchronised(state.model, last=part == settings.accumulate - 1):
            with state.autocast():
                output = state.model(micro, draw)
            (output.loss / settings.accumulate).backward()
        for name, value in {"loss": output.loss.detach(), **output.metrics}.items():
            metrics[name] = metrics.get(name, 0.0) + value / settings.accumulate
    norm = gradient_norm(state.parameters, settings.optim.clip)
    bad = (~norm.isfinite()).float()
    state.skipped += bad
    # The optimiser leaves the weights alone where this is 1, without the host having to know.
    state.optimizer.found_inf = bad  # type: ignore[attr-defined]
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    for statistic, old in zip(state.statistics, before, strict=True):
        statistic.copy_(torch.where(bad > 0, old, statistic))
    state.method.after_step(step)
    return {**metrics, "grad_norm": norm}


def train(
    state: State,
    images: Images,
    folder: Path,
    about: dict[str, Any],
    *,
    truth: Truth | None = None,
    groups: Groups | None = None,
    trial: Trial | None = None,
    stop_at: int | None = None,
    on_step: Callable[[int], None] | None = None,
    on_log: Callable[[dict[str, float]], None] | None = None,
) -> Outcome:
    """Train, or go on training, in a run folder that this process holds.

    Args:
        state: as built; the newest whole checkpoint is restored into it.
        images: what to train on.
        folder: of the run.
        about: goes into every checkpoint: recipe, manifest hash, commit, versions.
        truth: what is known of the images, for supervised methods.
        groups: gives every image its neighbours, for methods that look at them.
        trial: validates now and then, keeps the best weights and gives up when they no longer get better.
        stop_at: stop, resumably, after this many steps in all.
        on_step: called after every step with the steps done.
        on_log: called with the numbers of a log line.

    Raises:
        UserError: on a full disk, unreadable images in a row, or a gradient that is not finite when the recipe stops.
    """
    settings, world = state.settings, state.world
    start, broken, stored = checkpoint.load(folder / "checkpoints", state.model, state.optimizer)
    last = min(settings.steps, stop_at or settings.steps)
    if trial is not None:
        trial.restore(stored.get("trial"))
        last = start if trial.exhausted else last
    writer = Writer(state, folder, images, about, start, truth=truth, groups=groups, trial=trial)
    for reason in broken:
        writer.event("broken_checkpoint", start, reason=reason)
    writer.event("resume" if start else "start", start, steps=settings.steps)
    done, interrupted = start, False
    try:
        with interruptible() as asked:
            batches = writer.waiting.watched(_batches(state, images, truth, groups, start, last))
            for step, batch in zip(range(start, last), batches, strict=True):
                writer.saw(batch, step)
                numbers = train_step(state, batch, step)
                done = step + 1
                with writer.paused():
                    verdict = trial.after_step(done) if trial is not None else {}
                over = done == last or (trial is not None and trial.exhausted)
                line = writer.after_step(done, numbers, over, verdict)
                if on_step:
                    on_step(done)
                if line is not None and on_log:
                    on_log(line)
                if over:
                    break
                # several processes agree on it only where they meet anyway
                if distributed.any_of(world, asked()) if line is not None else world.size == 1 and asked():
                    interrupted = True
                    break
        writer.finish(done, interrupted)
    finally:
        writer.close()
    return Outcome(done, interrupted, writer.skipped_images, int(state.skipped.item()))


def _batches(
    state: State, images: Images, truth: Truth | None, groups: Groups | None, start: int, last: int
) -> Iterator[Batch]:
    settings, world = state.settings, state.world
    for batch in train_batches(
        images,
        state.sample,
        settings.loader,
        seed=settings.seed,
        steps=range(start, last),
        batch_size=settings.batch_size,
        rank=world.rank,
        world=world.size,
        truth=truth,
        groups=groups,
    ):
        yield batch.to(world.device)


STOPPING = b"\nstopping after this step, with a checkpoint; Ctrl-C again stops at once, without\n"


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a question that the loop asks; the second acts at once."""
    asked: list[int] = []
    before: dict[signal.Signals, Any] = {}

    def note(number: int, _frame: Any) -> None:
        asked.append(number)
        if number == signal.SIGINT and os.isatty(2) and int(os.environ.get("RANK", 0)) == 0:
            os.write(2, STOPPING)  # a step and its checkpoint can take a while, and a second Ctrl-C loses them
        signal.signal(number, before[signal.Signals(number)])

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.getsignal(number)
        try:
            signal.signal(number, note)
        except ValueError:  # not the main thread: whoever runs us there handles signals
            break
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is note:
                signal.signal(number, handler)
