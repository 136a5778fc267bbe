"""COG: finished rows as a cloud-optimised GeoTIFF that lies where the scene lies.

After ``store``. The rows become a plain tiled GeoTIFF in the store's folder, and GDAL's COG driver makes the file of
it, of classes with overviews. All values of a cell lie together, and tiles are small where cells have many values,
since a tile is the least that is read. Source: GDAL 3.10, drivers GTiff and COG.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.crs import CRS
from rasterio.windows import Window

from terrasieve.errors import UserError
from terrasieve.files import written_aside
from terrasieve.scenes.scene import Scene
from terrasieve.scenes.store import RowStore

_TILE_BYTES = 1 << 22
_CACHE_MB = 256  # of GDAL's blocks, else a share of the machine's memory


def write_cog(
    store: RowStore,
    path: Path,
    scene: Scene,
    cell_px: int,
    *,
    nodata: float,
    names: Sequence[str],
    tags: Mapping[str, str],
    overview: str | None = None,
    colours: Mapping[int, tuple[int, int, int, int]] | None = None,
) -> None:
    """Write a store's rows; the file appears under its name when it is whole.

    Args:
        store: all rows done.
        path: to write.
        scene: gives CRS and corner; a scene without coordinates gives a map without.
        cell_px: side of a cell in pixels of the scene.
        nodata: value of cells without data; NaN is one.
        names: of the bands.
        tags: of the file.
        overview: how overviews are made, e.g. "mode"; None = without, since GDAL makes those of
            hundreds of bands one by one, each time from the whole file.
        colours: red, green, blue, alpha of the first band's values.
    """
    rows, columns, count = store.shape
    block = tile_px(count * store.dtype.itemsize)
    place: dict[str, Any] = {}
    if scene.crs is not None and scene.transform is not None:
        transform = rasterio.Affine(*scene.transform) * rasterio.Affine.scale(cell_px)
        place = {"crs": CRS.from_string(scene.crs), "transform": transform}
    shape = {"width": columns, "height": rows, "count": count, "dtype": store.dtype.name, "nodata": nodata}
    layout = {"tiled": True, "blockxsize": block, "blockysize": block, "interleave": "pixel", "bigtiff": "if_safer"}
    plain = store.folder / "rows.tif"
    with rasterio.Env(GDAL_CACHEMAX=_CACHE_MB):
        with rasterio.open(plain, "w", driver="GTiff", **shape, **layout, **place) as file:
            if colours is not None:
                file.write_colormap(1, colours)
            for number, name in enumerate(names, 1):
                file.set_band_description(number, name)
            file.update_tags(**tags)
            for top in range(0, rows, block):
                values = store.rows(top, top + block)
                file.write(np.ascontiguousarray(values.transpose(2, 0, 1)), window=Window(0, top, columns, len(values)))
        with written_aside(path) as aside:
            how = {"BLOCKSIZE": block, "COMPRESS": "DEFLATE", "LEVEL": 4, "PREDICTOR": "YES", "BIGTIFF": "IF_SAFER"}
            small = {"OVERVIEWS": "NONE"} if overview is None else {"OVERVIEW_RESAMPLING": overview.upper()}
            rasterio.shutil.copy(plain, aside, driver="COG", **how, **small)


def tile_px(cell_bytes: int) -> int:
    """Return the side of tiles, 512, 256 or 128: of at most 4 MB, or the least that GDAL's COG driver asks for."""
    side = 512
    while side > 128 and side * side * cell_bytes > _TILE_BYTES:
        side //= 2
    return side


def check_target(path: Path, endings: Sequence[str]) -> None:
    """Check a file's ending before anything is computed.

    Raises:
        UserError: another ending.
    """
    if path.suffix.lower() not in endings:
        raise UserError(f"-o {path}: give a name that ends in {' or '.join(endings)}.")
