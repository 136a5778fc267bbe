"""Checkpoints: whole or absent. Written aside, flushed to disk, then renamed; an unreadable one falls back to the last.

Source of the layout: torch's distributed state dicts, gathered, so a run resumes with another number of processes.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)

from terrasieve.errors import UserError
from terrasieve.files import written_aside
from terrasieve.train.distributed import World

NAME = re.compile(r"step_(\d{8})\.pt$")


def save(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    world: World,
    about: dict[str, Any],
    keep: int,
) -> None:
    """Write the state after ``step`` steps and remove all but the newest ``keep`` checkpoints.

    All processes call it. ``about`` says where the state comes from: recipe, manifest hash, commit, versions.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, moments = get_state_dict(model, optimizer, options=options)
    if not world.leads:
        return
    with written_aside(folder / f"step_{step:08d}.pt") as aside:
        torch.save({"step": step, "model": weights, "optimizer": moments, "about": about}, aside)
    for _, old in found(folder)[:-keep]:
        old.unlink(missing_ok=True)


def found(folder: Path) -> list[tuple[int, Path]]:
    """Return the checkpoints of a run, (step, path), oldest first."""
    names = ((NAME.match(path.name), path) for path in folder.glob("step_*.pt"))
    return sorted((int(match[1]), path) for match, path in names if match)


class Restored(NamedTuple):
    """A resumed state: steps done (0 without a checkpoint), a line for each that could not be read, its ``about``."""

    step: int
    broken: list[str]
    about: dict[str, Any]


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Restored:
    """Restore the newest whole checkpoint.

    Raises:
        UserError: if there are checkpoints but none can be read, or the model does not fit.
    """
    broken: list[str] = []
    for step, path in reversed(found(folder)):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
            broken.append(f"{path.name} cannot be read ({str(error).splitlines()[0]}); falling back to an older one")
            continue
        try:
            set_state_dict(
                model,
                optimizer,
                model_state_dict=state["model"],
                optim_state_dict=state["optimizer"],
                options=StateDictOptions(full_state_dict=True),
            )
        except (RuntimeError, KeyError, ValueError) as error:
            raise UserError(
                f"{path} does not fit this recipe's model: {str(error).splitlines()[0]} "
                "Resume with the recipe that the run was started with."
            ) from error
        return Restored(step, broken, state["about"])
    if broken:
        raise UserError(f"No checkpoint in {folder} can be read: {'; '.join(broken)}. Start a new run.")
    return Restored(0, [], {})


def gathered_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the whole model's weights on the CPU, whatever it is spread over; all processes call it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = cast(dict[str, Tensor], get_model_state_dict(model, options=options))
    return {name: value.contiguous() for name, value in weights.items()}


def write_weights(weights: dict[str, Tensor], path: Path) -> None:
    """Write weights as safetensors, whole or not at all."""
    with written_aside(path) as aside:
        save_file(weights, aside)


def read_weights(path: Path, model: nn.Module) -> None:
    """Load what :func:`write_weights` wrote into a model, whatever it is spread over; all processes call it."""
    weights: dict[str, Any] = dict(load_file(path))
    set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True))
