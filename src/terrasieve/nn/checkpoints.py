"""Checkpoint files: read without running anything that is pickled in them, and taken out of their containers.

Below ``layouts``, which tells what the tensors are. A checkpoint may be ``.safetensors`` or PyTorch's own format
(``.pth``, ``.pt``, ``.ckpt``, ``.bin``); only tensors, numbers and the arguments of a command line are unpickled.
"""

from __future__ import annotations

import argparse
import pathlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from terrasieve.errors import UserError

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
# Where programs put a model's tensors, the better copy first: DINO's teacher, an average of weights, the model.
CONTAINERS = ("teacher", "state_dict_ema", "model_ema", "state_dict", "model")
_HARMLESS: list[Any] = [
    argparse.Namespace, pathlib.PosixPath, np.dtype, np.float64(0).__reduce__()[0], np.dtypes.Float64DType,
    np.dtypes.Int64DType,
]  # fmt: skip


def read(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint's tensors by key, without its containers and without DDP's ``module.``.

    Raises:
        UserError: a file that cannot be read, or that holds no tensors.
    """
    content = _load(path)
    inside = content
    while (name := next((one for one in CONTAINERS if isinstance(inside.get(one), Mapping)), None)) is not None:
        inside = inside[name]
    state = {str(key): value for key, value in inside.items() if isinstance(value, Tensor)}
    if not state:
        raise UserError(
            f"encoder.weights: {path} holds no weights where they should be ({', '.join(CONTAINERS)}, or the top); "
            f"its keys are {', '.join(map(str, list(content)[:8]))}. Save the model's state dict alone."
        )
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _load(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"encoder.weights: {path} holds more than tensors, and nothing pickled is run here "
            f"({str(error).strip().splitlines()[0]}). Where you trust it: torch.save(torch.load(FILE, "
            "weights_only=False)['model'], OTHER.pth), or whichever key holds the state dict."
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(f"encoder.weights: {path} cannot be read: {error}. Write or copy it again.") from error
    if not isinstance(content, Mapping):
        raise UserError(f"encoder.weights: {path} holds a {type(content).__name__}, no state dict.")
    return content
