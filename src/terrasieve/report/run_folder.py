"""What a run left behind, read whatever state it stopped in.

First stage of the report. The folder is that of ``train``: recipe.yaml, environment.json, log.jsonl, pictures/,
scores.json; anything but the log may be absent, and what cannot be read is said in ``problems`` instead of lost.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from terrasieve.errors import UserError
from terrasieve.evaluate.protocol import Score, read_scores

STATES = {"finish": "finished", "interrupted": "interrupted", "stop": "stopped"}


@dataclass
class Run:
    """A run folder's content.

    Attributes:
        folder: where it lies.
        recipe: text of recipe.yaml, "" where absent.
        settings: the recipe as nested dicts; empty where it cannot be read.
        environment: content of environment.json.
        steps: log lines with numbers, ascending in step; steps done again after a resume appear once.
        events: log lines with an event, in order.
        resumes: steps after which a resume went on.
        seconds: training time over all sessions.
        pictures: (step, file), ascending.
        scores: of scores.json.
        problems: sentences on what could not be read.
    """

    folder: Path
    recipe: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    resumes: list[int] = field(default_factory=list)
    seconds: float = 0.0
    pictures: list[tuple[int, Path]] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        """Return "finished", "interrupted", "stopped" or "unfinished" (running, or killed)."""
        turns = [event["event"] for event in self.events if event["event"] in (*STATES, "start", "resume")]
        return STATES.get(turns[-1] if turns else "", "unfinished")

    @property
    def skips(self) -> list[dict[str, Any]]:
        """Return the skip_image events."""
        return [event for event in self.events if event["event"] == "skip_image"]

    def numbers(self, name: str) -> list[tuple[int, float | None]]:
        """Return (step, value) of a logged number; None where it was not finite."""
        return [(line["step"], number(line[name])) for line in self.steps if name in line]


def read_run(folder: str | Path) -> Run:
    """Read a run folder.

    Raises:
        UserError: there is no such folder, or it holds neither a log nor a recipe.
    """
    run = Run(Path(folder))
    if not (run.folder / "log.jsonl").is_file() and not (run.folder / "recipe.yaml").is_file():
        raise UserError(f"{folder} is no run folder: it holds neither log.jsonl nor recipe.yaml; give the one of a run")
    _read_recipe(run)
    _read_log(run)
    try:
        run.environment = dict(json.loads((run.folder / "environment.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        run.problems.append(f"environment.json cannot be read: {error}")
    for file in sorted((run.folder / "pictures").glob("step_*.png")):
        if file.stem.removeprefix("step_").isdigit():
            run.pictures.append((int(file.stem.removeprefix("step_")), file))
    if (run.folder / "scores.json").exists():
        try:
            run.scores = read_scores(run.folder / "scores.json")
        except UserError as error:
            run.problems.append(str(error))
    return run


def number(value: Any) -> float | None:
    """Return a JSON value as a finite float, None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < float("inf") else None


def _read_recipe(run: Run) -> None:
    try:
        run.recipe = (run.folder / "recipe.yaml").read_text(encoding="utf-8", errors="replace")
        run.settings = dict(yaml.safe_load(run.recipe))
    except (OSError, yaml.YAMLError, TypeError, ValueError) as error:
        run.problems.append(f"recipe.yaml cannot be read: {error}")


def _tell_collapse(run: Run) -> None:
    """Say that the embeddings may have collapsed, and whether they still are."""
    falls = [event for event in run.events if event["event"] == "collapse"]
    ranks = [value for _, value in run.numbers("effective_rank") if value is not None]
    if not falls or not ranks:
        return
    bound = number(falls[-1].get("bound")) or 0.0
    steps = ", ".join(str(event["step"]) for event in falls[:5])
    now = f"it is {ranks[-1]:.2f} at the end" + ("" if ranks[-1] < bound else ", above it again")
    run.problems.append(
        f"the effective rank of the embeddings was below {bound:g} from step {steps} on: they may have collapsed, that "
        f"is, all images look alike to the encoder, whatever the loss says; {now}"
    )


def _read_log(run: Run) -> None:
    path = run.folder / "log.jsonl"
    if not path.is_file():
        run.problems.append("log.jsonl is absent")
        return
    steps: dict[int, dict[str, Any]] = {}
    clock = [0.0]  # seconds at each line; every session starts at 0
    broken = 0
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
            step = line["step"] = int(line["step"])
        except (ValueError, TypeError, KeyError, OverflowError):
            broken += bool(text.strip())
            continue
        if "event" not in line:
            steps[step] = line
            clock.append(number(line.get("time_s")) or 0.0)
            continue
        line["event"] = str(line["event"])
        run.events.append(line)
        if line["event"] == "resume":
            run.resumes.append(step)
            clock.append(0.0)
            steps = {old: numbers for old, numbers in steps.items() if old <= step}
    if broken:
        run.problems.append(f"half-written or foreign lines of log.jsonl, left out: {broken}")
    run.steps = [steps[step] for step in sorted(steps)]
    _tell_collapse(run)
    run.seconds = sum(before for before, after in pairwise([*clock, 0.0]) if after < before)
