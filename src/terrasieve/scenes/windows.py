"""Windows: where a network looks at a scene, on a lattice that starts at the scene's corner, and what it is shown.

Between ``scene`` and what is made of the windows: ``blend`` a seamless map, ``found`` the boxes of objects.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terrasieve.batch import Batch
from terrasieve.data.augment import ImageSettings, normalise, resize, resize_valid
from terrasieve.errors import UserError
from terrasieve.scenes.scene import Scene

Network = Callable[[Batch, torch.Generator], Tensor]  # of normalised windows


class Tiling(NamedTuple):
    """How windows lie on a scene, in cells.

    Attributes:
        cell_px: side of a cell in pixels of the scene.
        rows, columns: of the map; the last ones may reach beyond the scene by less than a cell.
        side: rows and columns of a window.
        overlap: of neighbouring windows, likewise.
    """

    cell_px: int
    rows: int
    columns: int
    side: tuple[int, int]
    overlap: tuple[int, int]

    @property
    def down(self) -> list[int]:
        """First rows of the windows."""
        return starts(self.rows, self.side[0], self.side[0] - self.overlap[0])

    @property
    def across(self) -> list[int]:
        """First columns of the windows."""
        return starts(self.columns, self.side[1], self.side[1] - self.overlap[1])

    @property
    def windows(self) -> int:
        """Number of all windows."""
        return len(self.down) * len(self.across)


def tiling(scene: Scene, cell_px: int, side: tuple[int, int], overlap: float) -> Tiling:
    """Lay windows of ``side`` cells over a scene.

    Args:
        scene: to cover.
        cell_px: side of a cell in pixels of the scene.
        side: rows and columns of cells in a window.
        overlap: share of a window's side, in [0, 1).

    Raises:
        UserError: an overlap out of range, or a window without a cell.
    """
    if min(side) < 1:
        raise UserError(f"--window: {side[0]} x {side[1]}; choose 1 or more.")
    if not 0 <= overlap < 1:
        raise UserError(f"--overlap: {overlap} of a window; choose a share in [0, 1).")
    shared = min(round(overlap * side[0]), side[0] - 1), min(round(overlap * side[1]), side[1] - 1)
    return Tiling(cell_px, -(-scene.height // cell_px), -(-scene.width // cell_px), side, shared)


def starts(length: int, side: int, step: int) -> list[int]:
    """Return where windows begin along an axis: 0, step, ..., and the last one so that it ends with the axis."""
    last = max(length - side, 0)
    return [*range(0, last, step), last]


def strip(scene: Scene, top: int, tiling: Tiling) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    """Read a row of windows; cells that reach beyond the scene are filled up with its last pixels."""
    array, valid = scene.strip(top * tiling.cell_px, tiling.side[0] * tiling.cell_px)
    beyond = tuple((0, -side % tiling.cell_px) for side in valid.shape)
    return np.pad(array, ((0, 0), *beyond), "edge"), np.pad(valid, beyond, "edge")


def cut_windows(
    array: NDArray[np.generic], valid: NDArray[np.bool_], across: list[int], tiling: Tiling, image: ImageSettings
) -> Batch:
    """Cut windows out of a strip at the size that the network sees; beyond it there is no data."""
    height, width = (side * tiling.cell_px for side in tiling.side)
    cut, real = [], []
    for left in across:
        span = slice(left * tiling.cell_px, left * tiling.cell_px + width)
        pixels, known = array[:, :, span], valid[:, span]
        missing = ((0, height - pixels.shape[1]), (0, width - pixels.shape[2]))
        known = np.pad(known, missing)
        pixels = np.where(known, np.pad(pixels, ((0, 0), *missing)), pixels.dtype.type(0))  # NaN would spread
        cut.append(resize(torch.from_numpy(pixels), *image.shape_px))
        real.append(resize_valid(torch.from_numpy(known), *image.shape_px))
    unknown, valid_BHW = torch.full((len(cut),), torch.nan, dtype=torch.float64), torch.stack(real)
    index = torch.zeros(len(cut), dtype=torch.int64)
    return Batch(torch.stack(cut), unknown, unknown, unknown, index, None if valid_BHW.all() else valid_BHW)


def computed(
    network: Network, batch: Batch, image: ImageSettings, draw: torch.Generator, device: torch.device | str
) -> Tensor:
    """Compute a network on windows that :func:`cut_windows` made."""
    mean_C, std_C = (torch.tensor(values, device=device) for values in (image.mean, image.std))
    with torch.inference_mode():
        return network(normalise(batch.to(torch.device(device)), mean_C, std_C), draw).float()
