"""Blend: what a network makes of overlapping windows of a scene, as one map without seams, row by row.

Between ``windows`` and ``store``. A window gives a map of cells (a ViT's patches; pixels of a segmentation), weighted
by a ramp that rises over the overlap: of two neighbouring windows one fades out as the other fades in. A cell is the
weighted mean of all windows that hold it.

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
from terrasieve.data.augment import ImageSettings
from terrasieve.scenes.scene import Scene
from terrasieve.scenes.windows import Network, Tiling, computed, cut_windows, strip


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
        network: in evaluation mode; gives (B, K, rows, columns), ``tiling.side`` cells for each window.
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
        array, valid = strip(scene, top, tiling)
        for begin in range(0, len(across), batch_size):
            some = across[begin : begin + batch_size]
            batch = cut_windows(array, valid, some, tiling, image)
            draw = keyed.generator(seed, "scene", number, begin, device=device)
            maps_BKHW = computed(network, batch, image, draw, device)
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


def _cells(valid: NDArray[np.bool_], tiling: Tiling) -> NDArray[np.bool_]:
    """Tell which cells of a strip hold a real pixel."""
    p = tiling.cell_px
    if p == 1:
        return valid
    real = valid.reshape(-1, p, tiling.columns, p).any(axis=(1, 3))
    return np.asarray(real, np.bool_)
