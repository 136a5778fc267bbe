"""Texture: the contrast that an image has at half its resolution, for those whose thumbnail is flat.

Called by ``sparse``: rows of a field are gone from 32 x 32 means, yet they are there, while the noise of open water is
halved by means of 2 x 2 pixels. Only flat images of 8 bits are read again, at full resolution; in the levels of others,
which are stretched, noise and furrows are the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from terrasieve.curate.engine import Engine, Lost
from terrasieve.curate.priority import take
from terrasieve.curate.step import Tick
from terrasieve.imagery.grey import FULL_PX, SIDE
from terrasieve.imagery.luminance import luminance
from terrasieve.imagery.unreadable import UnreadableImage

_PART = 64  # images per task
_READ = ("uri", "window", "bands")


class Images(NamedTuple):
    """Images to be looked at: where they are, and the standard deviation of each one's thumbnail."""

    uris: list[str]
    windows: list[list[int] | None]
    bands: list[list[str]]
    std: list[float]


def half_resolution_std(source: Path, rows: np.ndarray, std: np.ndarray, engine: Engine, tick: Tick) -> np.ndarray:
    """Return (k,) float64: standard deviation of means of 2 x 2 pixels, in levels of 256.

    An image that cannot be read, is larger than ``FULL_PX`` or not of 8 bits keeps the one of its thumbnail.

    Args:
        source: a manifest.
        rows: (k,) of it, ascending.
        std: (k,) of the thumbnails.
        engine: runs the reading.
        tick: told what is read.
    """
    table = take(source, rows, [*_READ, "dtype"])
    found = std.astype(np.float64)
    eight = np.flatnonzero(np.asarray(pc.equal(table["dtype"], "uint8").to_numpy(zero_copy_only=False), bool))
    columns = [*(table[name].take(pa.array(eight)).to_pylist() for name in _READ), found[eight].tolist()]
    parts = [Images(*(column[k : k + _PART] for column in columns)) for k in range(0, len(eight), _PART)]
    done = 0
    for number, result in engine.run(look, parts):
        part = eight[number * _PART : (number + 1) * _PART]
        if not isinstance(result, Lost):
            found[part] = result
        done += len(part)
        tick(done, len(eight))
    return found


def look(images: Images) -> list[float]:
    """Return the standard deviation of each image at half its resolution."""
    return [_std(*image) for image in zip(*images, strict=True)]


def _std(uri: str, window: list[int] | None, bands: list[str], std: float) -> float:
    try:
        grey = luminance(uri, window, bands, max_pixels=FULL_PX).grey
    except UnreadableImage:
        return std
    height, width = (side // 2 for side in grey.shape)
    if min(height, width) < SIDE:
        return std
    half = grey[: 2 * height, : 2 * width].reshape(height, 2, width, 2).mean(axis=(1, 3))
    return float(half.std())
