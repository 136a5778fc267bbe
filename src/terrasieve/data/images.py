"""Images: the manifest's rows that training and evaluation read, checked once, before anything starts.

Between ``manifest`` and ``samples``. Knows which bands of each file are wanted, which type the pixels travel in, and
each band's mean and standard deviation in digital numbers, which are stored in the recipe and in the exported model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from terrasieve import keyed
from terrasieve.errors import UserError
from terrasieve.imagery.unreadable import UnreadableImage

if TYPE_CHECKING:
    from terrasieve.data.shard_cache import ShardCache
    from terrasieve.imagery import raster


@dataclass(frozen=True)
class Images:
    """Rows of a manifest that are kept, ready to be read.

    Attributes:
        uris: file of each row.
        windows: (n, 4) int32, x, y, width, height in pixels of the file.
        whole: (n,) bool, True where the window is the whole file.
        bands: names of the bands that are read, in order.
        band_ids: for each row, an index into ``band_sets``.
        band_sets: 0-based band numbers to read from a file; None = all, in order.
        dtype: what pixels travel in: uint8, uint16 or float32.
        lon, lat: (n,) degrees, NaN when unknown.
        time: (n,) seconds since 1970, NaN when unknown.
        cache: where shards at URLs are kept while they are read; None = images are read where they are.
    """

    uris: list[str]
    windows: np.ndarray
    whole: np.ndarray
    bands: tuple[str, ...]
    band_ids: np.ndarray
    band_sets: list[tuple[int, ...] | None]
    dtype: np.dtype
    lon: np.ndarray
    lat: np.ndarray
    time: np.ndarray
    cache: ShardCache | None = None

    def __len__(self) -> int:
        return len(self.uris)

    def read(self, row: int, crop: tuple[int, int, int, int] | None = None) -> raster.Pixels:
        """Read a row's pixels, or a crop (x, y, width, height) of them.

        Raises:
            UnreadableImage: if the file cannot be decoded.
        """
        # Here, not above: a machine without rasterio trains and measures on pixels in memory.
        from terrasieve.imagery import raster

        x, y, width, height = (int(v) for v in self.windows[row])
        window: tuple[int, int, int, int] | None = (x, y, width, height)
        if crop is not None and crop != (0, 0, width, height):
            window = (x + crop[0], y + crop[1], crop[2], crop[3])
        elif self.whole[row]:
            window = None
        uri, bands = self.uris[row], self.band_sets[self.band_ids[row]]
        near = uri if self.cache is None else self.cache.near(uri)
        try:
            pixels = raster.read(near, window, bands)
        except UnreadableImage:
            if near == uri or self.cache is None:
                raise
            self.cache.forget(near)  # the copy was damaged, or let go a moment ago: the original has the last word
            pixels = raster.read(uri, window, bands)
        return raster.Pixels(pixels.array.astype(self.dtype, copy=False), pixels.valid)

    def take(self, rows: np.ndarray) -> Images:
        """Return some of the rows, in the order given: (k,) int64."""
        names = ("windows", "whole", "band_ids", "lon", "lat", "time")
        return replace(
            self, uris=[self.uris[row] for row in rows], **{name: getattr(self, name)[rows] for name in names}
        )


def from_table(table: pa.Table, bands: tuple[str, ...] | None = None) -> Images:
    """Choose a manifest's kept rows and the bands to read.

    Args:
        table: a manifest, see :mod:`terrasieve.manifest`.
        bands: names of the bands to read, in this order; None = what all rows have, in file order, without alpha.

    Raises:
        UserError: if no row is kept, or rows lack a band that is asked for.
    """
    kept = table.filter(pc.fill_null(table["keep"], False))
    if kept.num_rows == 0:
        raise UserError(
            f"The manifest keeps none of its {table.num_rows} rows, so there is nothing to read. "
            "Look at its `reason` column, and index again."
        )
    names: list[tuple[str, ...]] = [tuple(row or ()) for row in kept["bands"].to_pylist()]
    counts = Counter(names)
    wanted = bands or tuple(name for name in counts.most_common(1)[0][0] if name != "alpha")
    sets: dict[tuple[str, ...], int] = {}
    band_sets: list[tuple[int, ...] | None] = []
    lacking = [(have, n) for have, n in counts.items() if not set(wanted) <= set(have)]
    if lacking or not wanted:
        lacking.sort(key=lambda entry: -entry[1])
        listed = "; ".join(f"{n:,} row(s) have {', '.join(have) or 'no bands'}" for have, n in lacking[:4])
        listed += f"; and {len(lacking) - 4} other sets of bands" if len(lacking) > 4 else ""
        raise UserError(
            f"image.bands: {', '.join(wanted)} is not in every image of the manifest: {listed}. "
            "Name bands that all images have, 'image.bands=[red, green, blue]', or keep the images that have these: "
            f"terrasieve exclude MANIFEST -o FILE.parquet 'bands=[{', '.join(wanted)}]'."
        )
    for have in counts:
        sets[have] = len(band_sets)
        band_sets.append(None if have == wanted else tuple(have.index(name) for name in wanted))
    width, height = (kept[name].to_numpy(zero_copy_only=False).astype(np.int32) for name in ("width", "height"))
    windows = np.stack([np.zeros_like(width), np.zeros_like(width), width, height], axis=1)
    whole = pc.is_null(kept["window"]).to_numpy(zero_copy_only=False).astype(bool)
    given = kept["window"].to_pylist()
    for row in np.flatnonzero(~whole):
        windows[row] = given[row]
    return Images(
        uris=kept["uri"].to_pylist(),
        windows=windows,
        whole=whole,
        bands=tuple(wanted),
        band_ids=np.array([sets[row] for row in names], dtype=np.int32),
        band_sets=band_sets,
        dtype=_common_dtype(set(kept["dtype"].to_pylist())),
        lon=_floats(kept["lon"]),
        lat=_floats(kept["lat"]),
        time=_floats(pc.divide(pc.cast(kept["datetime"], pa.int64()), 1_000_000.0)),
    )


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.fill_null(pc.cast(column, pa.float64()), float("nan")).to_numpy(), dtype=np.float64)


def _common_dtype(names: set[str]) -> np.dtype:
    """Return the smallest of uint8, uint16 and float32 that holds all of them without loss of range."""
    if names <= {"uint8"}:
        return np.dtype(np.uint8)
    return np.dtype(np.uint16 if names <= {"uint8", "uint16"} else np.float32)


def band_statistics(
    images: Images, seed: int, samples: int = 512, window_px: int = 512, on_image: Callable[[], None] | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measure each band's mean and standard deviation over a keyed sample of images.

    Args:
        images: what to read.
        seed: chooses the images, without replacement, and a window of at most ``window_px`` in each.
        samples: how many images to read at most.
        window_px: largest side read of an image.
        on_image: called after each image, for a progress bar.

    Returns:
        Means and standard deviations, one per band, in digital numbers; a constant band gets standard deviation 1.

    Raises:
        UserError: if none of the sampled images can be read.
    """
    draw = keyed.numpy_generator(seed, "statistics")
    rows = draw.permutation(len(images))[:samples]
    count = np.zeros(len(images.bands))
    total, square = np.zeros_like(count), np.zeros_like(count)
    failed = ""
    for row in rows:
        width, height = (int(v) for v in images.windows[row, 2:])
        w, h = min(width, window_px), min(height, window_px)
        crop = (int(draw.integers(width - w + 1)), int(draw.integers(height - h + 1)), w, h)
        try:
            pixels = images.read(int(row), crop)
        except UnreadableImage as error:
            failed = str(error)
            continue
        finally:
            if on_image:
                on_image()
        values = pixels.array.reshape(len(count), -1).astype(np.float64)
        values = values if pixels.valid is None else values[:, pixels.valid.ravel()]
        count += values.shape[1]
        total += values.sum(axis=1)
        square += np.square(values).sum(axis=1)
    if not count.any():
        raise UserError(
            f"None of {len(rows)} sampled images can be read; the last one says: {failed or 'not one pixel is real'}"
        )
    mean = total / count
    std = np.sqrt(np.maximum(square / count - mean**2, 0))
    std[std == 0] = 1.0
    return tuple(np.round(mean, 4).tolist()), tuple(np.round(std, 4).tolist())
