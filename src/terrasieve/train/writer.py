"""Writer: what a run leaves behind as it goes: log lines, pictures, checkpoints, and at the end the weights.

Called by ``loop`` after every step. On CUDA a log line's numbers are copied while the next steps are queued, and read
when the next line is due, so that the device never waits for the host.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from terrasieve import keyed
from terrasieve.batch import Batch, Skip
from terrasieve.data.augment import normalise
from terrasieve.data.groups import Groups
from terrasieve.data.images import Images
from terrasieve.data.samples import TrainSamples, WholeSamples, collate
from terrasieve.data.truth import Truth
from terrasieve.errors import UserError
from terrasieve.methods import Method
from terrasieve.methods.collapse import COLLAPSED_RANK
from terrasieve.train import checkpoint, picture
from terrasieve.train.distributed import gathered, mean_over
from terrasieve.train.log import Log
from terrasieve.train.optim import lr_at
from terrasieve.train.state import State, evaluating
from terrasieve.train.trial import Trial
from terrasieve.train.waiting import Waiting

PICTURED = 6


class _Pending(NamedTuple):
    """A log line whose numbers are still on their way from the device."""

    step: int
    names: list[str]
    values: Tensor
    arrived: torch.cuda.Event | None
    known: dict[str, float]


def state_name(method: Method) -> str:
    """Return what the names of the backbone's weights begin with in a method's state."""
    names = {module: name for name, module in cast(nn.Module, method).named_modules()}
    return f"{names[method.encoder.vit]}."


class Writer:
    """Write a run's folder; only rank 0 touches files, but all processes call every method."""

    def __init__(
        self,
        state: State,
        folder: Path,
        images: Images,
        about: dict[str, Any],
        start: int,
        *,
        truth: Truth | None = None,
        groups: Groups | None = None,
        trial: Trial | None = None,
    ) -> None:
        self.truth, self.groups, self.trial = truth, groups, trial
        self.state, self.folder, self.images, self.about = state, folder, images, about
        settings = state.settings
        self.log = Log(folder, start, settings.log.wandb) if state.world.leads else None
        self.skipped_images = 0
        self._collapsed = False
        self.waiting = Waiting(state.world.device)
        self._unlisted: list[tuple[int, Skip]] = []
        self._pending: _Pending | None = None
        self._sums: dict[str, Tensor] = {}
        self._since = start
        self._saved = start if start else -1
        self._began = self._mark = time.monotonic()
        self._paused = 0.0
        self._pictured: Batch | None = None

    def event(self, event: str, step: int, **details: Any) -> None:
        """Log that something happened."""
        if self.log:
            self.log.event(event, step, **details)

    def saw(self, batch: Batch, step: int) -> None:
        """Count and list the images that could not be read for a batch."""
        for skip in batch.skipped:
            self.skipped_images += 1
            self.event("skip_image", step, uri=skip.uri, reason=skip.reason)
            if not self.log:
                self._unlisted.append((step, skip))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what is done inside out of the images per second."""
        began = time.monotonic()
        yield
        self._paused += time.monotonic() - began

    def after_step(
        self, done: int, numbers: dict[str, Tensor], due: bool, verdict: dict[str, float]
    ) -> dict[str, float] | None:
        """Write what is due after a step.

        Args:
            done: steps done.
            numbers: of this step, on the device.
            due: this is the last step.
            verdict: numbers of a validation; a line is written when there are any.

        Returns:
            The numbers of a log line, if one was written (on CUDA: the one before).
        """
        settings = self.state.settings.log
        for name, value in numbers.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
        line = None
        if due or verdict or done % settings.every == 0:
            line = self._write_line(done, verdict, last=due)
        with self.paused():
            if settings.picture_every and done % settings.picture_every == 0 and not due:
                self.picture(done)
            if done % settings.checkpoint_every == 0 and not due:
                self.save(done)
        return line

    def finish(self, done: int, interrupted: bool) -> None:
        """Write the last checkpoint, picture and weights (the best ones, if the run is over), and what was skipped."""
        for step, skip in gathered(self.state.world, self._unlisted):
            self.skipped_images += 1
            self.event("skip_image", step, uri=skip.uri, reason=skip.reason)
        self.save(done)
        complete = done >= self.state.settings.steps or (self.trial is not None and self.trial.exhausted)
        if complete and self.trial is not None:
            self.trial.bring_back_best()
        self.picture(done)
        self._weights()
        self._read_pending()
        event = "interrupted" if interrupted else "finish" if complete else "stop"
        skipped = int(self.state.skipped.item())
        self.event(event, done, skipped_images=self.skipped_images, skipped_steps=skipped)

    def close(self) -> None:
        """Close the log."""
        if self.log:
            self.log.close()

    def save(self, done: int) -> None:
        """Write a checkpoint, once per step."""
        if done == self._saved:
            return
        state = self.state
        folder, keep = self.folder / "checkpoints", state.settings.log.keep_checkpoints
        about = self.about | ({"trial": self.trial.standing()} if self.trial is not None else {})
        checkpoint.save(folder, done, state.model, state.optimizer, state.world, about, keep)
        self._saved = done

    def picture(self, done: int) -> None:
        """Reconstruct the same few whole images as ever, and draw them."""
        state, settings = self.state, self.state.settings
        if self._pictured is None:
            self._pictured = self._choose()
        if self._pictured is None:
            return
        batch = normalise(self._pictured.to(state.world.device), state.mean, state.std)
        batch = replace(batch, progress=min(done / settings.steps, 1.0))
        draw = keyed.generator(settings.seed, "picture", device=state.world.device)
        with evaluating(state), state.autocast():
            painted = state.method(batch, draw, picture=True).picture
        if self.log and painted:
            bands, patch_px = self.images.bands, settings.encoder.patch_px
            if "image" in painted:
                drawn = picture.compose_views(painted, bands)
            else:
                drawn = picture.compose(painted, patch_px, settings.image.shape_px, bands)
            picture.write(drawn, self.folder / "pictures" / f"step_{done:08d}.png")
            self.log.picture(done, drawn)

    def _choose(self) -> Batch | None:
        """Read up to six images, drawn once by key; broken ones are passed over (they are counted in training).

        Images with neighbours are cropped as in training, or they would all look alike where places repeat.
        """
        image, seed = self.state.sample, self.state.settings.seed
        samples, whole = [], WholeSamples(self.images, image, self.truth)
        grouped = None if self.groups is None else TrainSamples(self.images, image, seed, groups=self.groups)
        order = keyed.numpy_generator(seed, "pictured").permutation(len(self.images))
        for place in range(4 * PICTURED):
            epoch, row = place // len(order), int(order[place % len(order)])
            if grouped is None and epoch:
                break
            try:
                samples.append(whole[row] if grouped is None else grouped[epoch, row])
            except UserError:
                continue
            if len(samples) == PICTURED:
                break
        return collate(samples) if samples else None

    def _write_line(self, done: int, verdict: dict[str, float], last: bool) -> dict[str, float] | None:
        state, settings = self.state, self.state.settings
        names = [*self._sums, "skipped_steps"]
        count = done - self._since
        values = torch.stack([*(total.float() / count for total in self._sums.values()), state.skipped])
        values = mean_over(state.world, values)
        now = time.monotonic()
        passed_s = max(now - self._mark - self._paused, 1e-9)
        known = {
            "lr": lr_at(done - 1, settings.steps, settings.optim, state.peak),
            "epoch": done * settings.batch_size / len(self.images),
            "images_per_s": count * settings.batch_size * (self.groups.count if self.groups else 1) / passed_s,
            "data_wait": self.waiting.taken_s() / passed_s,
            "time_s": now - self._began,
            "skipped_images": float(self.skipped_images),
            **verdict,
        }
        self._sums, self._since, self._mark, self._paused = {}, done, now, 0.0
        line = self._read_pending()
        arrived = None
        if state.world.device.type == "cuda":
            values = values.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        self._pending = _Pending(done, names, values, arrived, known)
        return self._read_pending() if last or arrived is None else (line or {})

    def _read_pending(self) -> dict[str, float] | None:
        if self._pending is None:
            return None
        step, names, values, arrived, known = self._pending
        self._pending = None
        if arrived is not None:
            arrived.synchronize()
        line = dict(zip(names, values.tolist(), strict=True)) | known
        if self.log:
            self.log.step(step, line)
        collapsed = line.get("effective_rank", COLLAPSED_RANK) < COLLAPSED_RANK
        if collapsed and not self._collapsed:
            self.event("collapse", step, effective_rank=line["effective_rank"], bound=COLLAPSED_RANK)
        self._collapsed = collapsed
        if line["skipped_steps"] and self.state.settings.optim.non_finite == "stop":
            raise UserError(
                f"A gradient was not finite at or before step {step} and optim.non_finite is 'stop'. The weights were "
                "left as they were before it. Lower optim.base_lr, lengthen optim.warmup, or use non_finite=skip."
            )
        return line

    def _weights(self) -> None:
        """Write the encoder alone, in timm's names, and of a method that predicts the whole model too."""
        weights = checkpoint.gathered_weights(self.state.model)
        if self.state.world.leads:
            backbone = state_name(self.state.method)
            vit = {name.removeprefix(backbone): w for name, w in weights.items() if name.startswith(backbone)}
            lone_positions = getattr(self.state.method, "lone_positions", None)
            if lone_positions is not None:  # its images stand in frames of their own; exported, they are alone
                vit["pos_embed"] = lone_positions(weights)
            checkpoint.write_weights(vit, self.folder / "weights.safetensors")
            if hasattr(self.state.method, "predict"):
                checkpoint.write_weights(weights, self.folder / "model.safetensors")
