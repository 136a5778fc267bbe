"""Trial: validation while a method is trained: which weights are the best so far, and when to give up.

Called by ``loop`` after a step when due. What it knows goes into every checkpoint, so that a resumed run stops where
the uninterrupted one does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from terrasieve.train import checkpoint
from terrasieve.train.state import State

BEST = "best.safetensors"


class Trial:
    """Validate every so many steps and at the end of the run, and keep the weights that score best.

    Attributes:
        best: the best value of the monitored metric, -inf before the first validation.
        best_step: steps done then; 0 before it.
        waited: validations since.
    """

    def __init__(
        self,
        state: State,
        folder: Path,
        measure: Callable[[State], dict[str, float]],
        *,
        monitor: str,
        every: int,
        patience: int | None,
    ) -> None:
        """Describe the validation.

        Args:
            state: what is validated.
            folder: of the run; the best weights are kept in its ``checkpoints/best.safetensors``.
            measure: computes metrics, the same on every process; all processes call it.
            monitor: the metric that is the larger the better.
            every: steps between validations.
            patience: validations without a better one after which to give up; None = never.
        """
        self.state, self.measure, self.monitor, self.every, self.patience = state, measure, monitor, every, patience
        self.path = folder / "checkpoints" / BEST
        self.best, self.best_step, self.waited = -math.inf, 0, 0

    @property
    def exhausted(self) -> bool:
        """Whether patience is at its end."""
        return self.patience is not None and self.waited >= self.patience

    def after_step(self, done: int) -> dict[str, float]:
        """Validate when due; return the metrics, their names with ``val_`` before them, or nothing."""
        if done % self.every and done != self.state.settings.steps:
            return {}
        metrics = self.measure(self.state)
        if metrics[self.monitor] > self.best:  # never true of NaN
            self.best, self.best_step, self.waited = metrics[self.monitor], done, 0
            weights = checkpoint.gathered_weights(self.state.model)
            if self.state.world.leads:
                checkpoint.write_weights(weights, self.path)
        else:
            self.waited += 1
        return {f"val_{name}": value for name, value in metrics.items()}

    def bring_back_best(self) -> None:
        """Load the best weights; those of the end stay when no validation gave a number."""
        if self.best_step:
            checkpoint.read_weights(self.path, self.state.model)

    def standing(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold."""
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited}

    def restore(self, standing: dict[str, Any] | None) -> None:
        """Take up where a checkpoint was written."""
        if standing is not None:
            self.best, self.best_step, self.waited = (standing[name] for name in ("best", "best_step", "waited"))
