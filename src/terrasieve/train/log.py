"""The log of a run: JSON lines, TensorBoard events and, on request, Weights & Biases. Only rank 0 writes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from terrasieve.errors import UserError


class Log:
    """Append steps and events to ``log.jsonl`` and to TensorBoard; a line is written whole and flushed."""

    def __init__(self, folder: Path, start: int, wandb_project: str | None = None) -> None:
        self._file = (folder / "log.jsonl").open("a", encoding="utf-8")
        if self._file.tell() and not (folder / "log.jsonl").read_bytes().endswith(b"\n"):
            self._file.write("\n")  # a killed run left half a line
        self._board = SummaryWriter(str(folder), purge_step=start or None)
        self._wandb = _wandb(wandb_project, folder) if wandb_project else None

    def step(self, step: int, numbers: dict[str, float]) -> None:
        """Write the numbers of a step; a number that is not finite becomes null, as JSON wants it."""
        safe = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self._write({"step": step, **safe})
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def event(self, event: str, step: int, **details: Any) -> None:
        """Write that something happened: start, resume, skip_image, interrupted, finish."""
        self._write({"event": event, "step": step, **details})

    def picture(self, step: int, image_HWC: Any) -> None:
        """Show a picture in TensorBoard."""
        self._board.add_image("reconstruction", image_HWC, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close everything."""
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def _wandb(project: str, folder: Path) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise UserError("log.wandb needs Weights & Biases: pip install 'terrasieve[wandb]'.") from error
    return wandb.init(project=project, name=folder.name, dir=str(folder), resume="allow", id=folder.name)


def read_log(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Read a run's log.

    Returns:
        (steps, events). Steps that a resume repeated appear once, as they were done last; half a line is left out.
    """
    steps: dict[int, dict[str, Any]] = {}
    events: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if "event" in line:
            events.append(line)
            if line["event"] == "resume":
                steps = {step: old for step, old in steps.items() if step <= line["step"]}
        else:
            steps[line["step"]] = line
    return [steps[step] for step in sorted(steps)], events
