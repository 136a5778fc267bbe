"""Scene: a raster of any size, read in strips of its rows, with the bands that a network wants.

First of the package; ``blend`` reads it. The file is opened for every strip and closed again, so a scene is never held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from terrasieve.data.images import Images
from terrasieve.errors import UserError
from terrasieve.imagery import geo, raster
from terrasieve.imagery.headers import header, is_remote

_SAMPLES = 16  # a side: images that stand for a scene
_LARGEST = 1 << 62  # width x height believed: a scene is never decoded at once


@dataclass(frozen=True)
class Scene:
    """What is known of a raster before its pixels are read.

    Attributes:
        uri: path or URL.
        width, height: pixels.
        bands: numbers of the bands to read, from 0, in the network's order.
        names: all bands of the file.
        dtype: what the network's pixels travel in: uint8, uint16 or float32.
        crs, transform: where it lies (see ``imagery.geo``); None when the file does not say.
    """

    uri: str
    width: int
    height: int
    bands: tuple[int, ...]
    names: tuple[str, ...]
    dtype: np.dtype
    crs: str | None
    transform: geo.Affine | None

    def strip(self, top: int, rows: int) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Read rows of pixels, as many as there are: (C, rows, width), and where they are real."""
        rows = min(rows, self.height - top)
        pixels = raster.read(self.uri, (0, top, self.width, rows), self.bands)
        valid = np.ones((rows, self.width), np.bool_) if pixels.valid is None else pixels.valid
        return pixels.array.astype(self.dtype, copy=False), valid

    @property
    def chosen(self) -> tuple[str, ...]:
        """Names of the bands to read."""
        return tuple(self.names[band] for band in self.bands)

    def images(self, side_px: int = 256) -> Images:
        """Return windows spread evenly over the scene, all of it if it is small, for what is measured of images."""
        lefts, tops = (_spread(length, side_px) for length in (self.width, self.height))
        x, y = (place.ravel() for place in np.meshgrid(lefts, tops))
        windows = np.stack([x, y, np.minimum(side_px, self.width - x), np.minimum(side_px, self.height - y)], axis=1)
        unknown = np.full(len(x), np.nan)
        return Images(
            [self.uri] * len(x), windows.astype(np.int32), np.zeros(len(x), np.bool_), self.chosen,
            np.zeros(len(x), np.int32), [self.bands], self.dtype, unknown, unknown, unknown,
        )  # fmt: skip

    def stamp(self) -> list[int | str]:
        """Return what tells whether the file is still the same: uri, size, and of a local file bytes and time."""
        if is_remote(self.uri):
            return [self.uri, self.width, self.height]
        about = Path(self.uri).stat()
        return [self.uri, self.width, self.height, about.st_size, about.st_mtime_ns]


def _spread(length: int, side_px: int) -> NDArray[np.int64]:
    count = min(-(-length // side_px), _SAMPLES)
    return np.unique(np.linspace(0, max(length - side_px, 0), count).astype(np.int64))


def open_scene(path: str | Path, wanted: Sequence[str] | None, given: Sequence[str] | None = None) -> Scene:
    """Read a raster's header and find the wanted bands in it.

    Args:
        path: of the raster, or its URL.
        wanted: names of the bands, in the network's order; None = ``given``, or all of the file without alpha.
        given: names of the file's bands that stand for them, in the same order; None = those of the same names.

    Raises:
        UserError: no such file, no raster, or bands that it does not have.
    """
    uri = str(path) if is_remote(str(path)) else str(Path(path).absolute())
    head = header(uri, ends=True, max_pixels=_LARGEST)
    wanted = wanted or given or tuple(name for name in head.bands if name != "alpha")
    names = tuple(given or wanted)
    if len(names) != len(wanted):
        raise UserError(
            f"--bands: {', '.join(names)} are {len(names)} bands; the network takes {len(wanted)}: {', '.join(wanted)}."
        )
    lacking = [name for name in names if name not in head.bands]
    if lacking:
        raise UserError(
            f"{path} has no band {', '.join(lacking)}; it has {', '.join(head.bands)}, and the network takes "
            f"{', '.join(wanted)}. Name the bands that stand for them, in that order, with --bands."
        )
    dtype = np.dtype(head.dtype if head.dtype in ("uint8", "uint16") else np.float32)
    chosen = tuple(head.bands.index(name) for name in names)
    return Scene(uri, head.width, head.height, chosen, head.bands, dtype, head.crs, head.transform)
