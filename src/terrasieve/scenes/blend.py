"""Blend: what a network makes of overlapping windows of a scene, as one map without seams, row by row.

Between ``scene`` and ``store``. Windows stand on a lattice that starts at the scene's corner. Each gives a map of cells
(a ViT's patches; pixels of a segmentation), weighted by a ramp that rises over the overlap, so that of two
neighbouring windows one fades out as the other fades in, and a cell is the weighted mean of all windows that hold it.

What holds exactly: a cell depends on the windows that hold it and on nothing else, so cutting a scene at a multiple of
the lattice's step leaves every cell as it is that lies a window's side or more from the cut; reading in one go or going
on after an interruption gives the same bits. A network that sees no farther than a cell gives the same map whatever
the windows; a ViT sees all of its window, so another window size is another map.

Legend: K values per cell, n finished rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terrasieve import keyed
from terrasieve.batch import Batch
from terrasieve.data.augment import ImageSettings, normalise, resize, resize_valid
from terrasieve.errors import UserError
from terrasieve.scenes.scene import Scene

Network = Callable[[Batch, torch.Generator], Tensor]  # normalised windows -> (B, K, rows, columns) of cells


class Rows(NamedTuple):
    """Finished rows of a map.

    Attributes:
        values: (K, n, columns) float32.
        valid: (n, columns), False where no pixel of the cell is real.
        windows: of the scene, done so far.
    """

    values: NDArray[np.float32]
    valid: NDArray[np.bool_]
    windows: int


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
        UserError: an overlap out of range.
    """
    if not 0 <= overlap < 1:
        raise UserError(f"--overlap: {overlap} of a window; choose a share in [0, 1).")
    shared = min(round(overlap * side[0]), side[0] - 1), min(round(overlap * side[1]), side[1] - 1)
    return Tiling(cell_px, -(-scene.height // cell_px), -(-scene.width // cell_px), side, shared)


def starts(length: int, side: int, step: int) -> list[int]:
    """Return where windows begin along an axis: 0, step, ..., and the last one so that it ends with the axis."""
    last = max(length - side, 0)
    return [*range(0, last, step), last]


def ramp(side: int, overlap: int) -> Tensor:
    """Return a window's weight along an axis: rises over the overlap, 1 between, falls; neighbours' ramps add to 1."""
    place = torch.arange(side) + 0.5
    return (torch.minimum(place, side - place) / max(overlap, 0.5)).clamp(max=1)


def blended(
    scene: Scene,
    network: Network,
    tiling: Tiling,
    image: ImageSettings,
    *,
    first: int = 0,
    batch_size: int = 16,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_windows: Callable[[int, int], None] | None = None,
) -> Iterator[Rows]:
    """Compute a map from its row ``first`` on; memory grows with the scene's width and not with its height.

    Args:
        scene: what to read.
        network: in evaluation mode; gives ``tiling.side`` cells for each window.
        tiling: from :func:`tiling`.
        image: size that the network sees, and each band's mean and standard deviation.
        first: rows before it are known.
        batch_size: windows at a time.
        seed: of what is drawn in prediction, as random dropping does.
        device: where the network is.
        on_windows: called with windows done and their total.

    Raises:
        UnreadableImage: if the scene cannot be decoded.
    """
    rows, columns = tiling.side
    weight = ramp(rows, tiling.overlap[0])[:, None] * ramp(columns, tiling.overlap[1])
    weight = weight.to(device)
    down, across = tiling.down, tiling.across
    broad = max(tiling.columns, columns)
    total: Tensor | None = None
    weights = torch.zeros(rows, broad, device=device)
    for number, top in enumerate(down):
        end = down[number + 1] if number + 1 < len(down) else tiling.rows
        if top + rows <= first:
            continue  # nothing of it is wanted
        array, valid = _strip(scene, top, tiling)
        for begin in range(0, len(across), batch_size):
            some = across[begin : begin + batch_size]
            batch = _windows(array, valid, some, tiling, image)
            draw = keyed.generator(seed, "scene", number, begin, device=device)
            maps_BKHW = _computed(network, batch, image, draw, device)
            if total is None:
                total = torch.zeros(maps_BKHW.shape[1], rows, broad, device=device)
            for left, map_KHW in zip(some, maps_BKHW, strict=True):
                total[:, :, left : left + columns].addcmul_(map_KHW, weight)
                weights[:, left : left + columns] += weight
            if on_windows:
                on_windows(number * len(across) + begin + len(some), tiling.windows)
        assert total is not None
        done, skip = end - top, max(first - top, 0)
        if done > skip:
            mean = total[:, skip:done, : tiling.columns] / weights[skip:done, : tiling.columns]
            real = _cells(valid, tiling)[skip:done]
            yield Rows(mean.cpu().numpy(), real, (number + 1) * len(across))
        for kept in (total, weights):
            left_over = kept[..., done:, :].clone()
            kept.zero_()
            kept[..., : rows - done, :] = left_over


def _computed(
    network: Network, batch: Batch, image: ImageSettings, draw: torch.Generator, device: torch.device | str
) -> Tensor:
    mean_C, std_C = (torch.tensor(values, device=device) for values in (image.mean, image.std))
    with torch.inference_mode():
        return network(normalise(batch.to(torch.device(device)), mean_C, std_C), draw).float()


def _strip(scene: Scene, top: int, tiling: Tiling) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    """Read a row of windows; cells that reach beyond the scene are filled up with its last pixels."""
    array, valid = scene.strip(top * tiling.cell_px, tiling.side[0] * tiling.cell_px)
    beyond = tuple((0, -side % tiling.cell_px) for side in valid.shape)
    return np.pad(array, ((0, 0), *beyond), "edge"), np.pad(valid, beyond, "edge")


def _windows(
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


def _cells(valid: NDArray[np.bool_], tiling: Tiling) -> NDArray[np.bool_]:
    """Tell which cells of a strip hold a real pixel."""
    p = tiling.cell_px
    if p == 1:
        return valid
    real = valid.reshape(-1, p, tiling.columns, p).any(axis=(1, 3))
    return np.asarray(real, np.bool_)
