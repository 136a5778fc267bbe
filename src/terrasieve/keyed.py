"""Keyed random streams: the only place in the project where randomness begins.

A stream is named (``"order"``, ``"augment"``, ``"mask"``) and keyed by integers (epoch and index, or step), so every
draw is a function of the seed and of what it is drawn for, never of how many draws came before, nor of the number of
workers or processes. That is what makes a resumed run bitwise equal to an uninterrupted one.

Order = f(seed, epoch), augmentation = f(seed, epoch, index), masks = f(seed, step): DESIGN.md, section 3.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def key(seed: int, stream: str, *parts: int) -> int:
    """Hash a seed, a stream's name and integers into 128 bits.

    Args:
        seed: the run's seed, any integer.
        stream: the name of the stream; streams are independent of each other.
        parts: what the draw is for, e.g. epoch and index.

    Returns:
        An integer in [0, 2**128), the same on every machine and Python version.
    """
    text = "\x1f".join([stream, str(int(seed)), *(str(int(part)) for part in parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def numpy_generator(seed: int, stream: str, *parts: int) -> np.random.Generator:
    """Return NumPy's counter-based Philox generator for a key (see :func:`key` for the arguments)."""
    return np.random.Generator(np.random.Philox(key=key(seed, stream, *parts)))


def mixed(seed: int, stream: str, ids: np.ndarray) -> np.ndarray:
    """Return a uniform uint64 for each of (n,) uint64 ids, a function of the key (see :func:`key`) and the id alone.

    Source: the finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), of the ids shifted by the key.
    """
    values = ids + np.uint64(key(seed, stream) & (2**64 - 1))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray(values ^ (values >> np.uint64(31)))


def generator(seed: int, stream: str, *parts: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a torch generator for a key (see :func:`key`), seeded on ``device``.

    A CPU and a CUDA generator of the same key give different numbers: torch's engines differ.
    """
    import torch

    return torch.Generator(device=device).manual_seed(key(seed, stream, *parts) & (2**63 - 1))
