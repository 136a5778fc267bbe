"""Vectors: what ``terrasieve embed`` wrote, a table or a COG, read a part at a time, and where each vector is from.

After ``table`` and ``cog``; ``similar`` asks it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import rasterio
import shapely
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.errors import RasterioError

from terrasieve.errors import UserError
from terrasieve.imagery import geo
from terrasieve.scenes import table

Window = tuple[int, int, int, int]


class Places(NamedTuple):
    """Where some vectors are from.

    Attributes:
        ids: of the rows; of a scene's cell ``row,column``.
        uris: of the images.
        windows: x, y, width, height in pixels; None = the whole image.
        lonlat_N2: degrees, NaN where unknown.
    """

    ids: list[str]
    uris: list[str]
    windows: list[Window | None]
    lonlat_N2: NDArray[np.float64]


class TableVectors:
    """Vectors of a table, see ``scenes.table``.

    Attributes:
        count, width: N and D.
        columns: None: they are no grid.
        made_of: what the images are.
    """

    columns: int | None = None

    def __init__(self, path: Path) -> None:
        self._file, self.width, about = table.opened(path)
        self.count, self.made_of = int(self._file.metadata.num_rows), str(about.get("made_of", path))
        self._rows = self._file.read(list(table.PLACE))

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Return all vectors, (n, D) at a time; NaN where there is no data."""
        for batch in self._file.iter_batches(8192, columns=["vector"]):
            flat = batch.column(0).flatten().to_numpy(zero_copy_only=False)
            yield flat.astype(np.float32, copy=False).reshape(-1, self.width)

    def places(self, rows: Sequence[int]) -> Places:
        """Return where vectors are from."""
        some = self._rows.take(pa.array(rows, pa.int64()))
        windows = [None if window is None else tuple(window) for window in some["window"].to_pylist()]
        lonlat = [some[name].cast(pa.float64()).to_numpy(zero_copy_only=False) for name in ("lon", "lat")]
        return Places(some["id"].to_pylist(), some["uri"].to_pylist(), windows, np.stack(lonlat, 1))

    def find(self, like: str) -> int:
        """Return the row of an id, of a file by its path or the end of it, or of "longitude,latitude".

        Raises:
            UserError: there is none.
        """
        point = lonlat_of(like)
        if point is None:
            row = int(pc.index(self._rows["id"], like).as_py())
            return row if row >= 0 else self._of_file(like)
        outlines = shapely.from_wkb(self._rows["geometry"].to_numpy())
        lon, lat = (self._rows[name].cast(pa.float64()).to_numpy(zero_copy_only=False) for name in ("lon", "lat"))
        km = geo.haversine_km(*point, lon, lat)
        if not np.isfinite(km).any():
            raise UserError(f"--like {like}: no row says where it lies; give an id.")
        holds = shapely.intersects_xy(outlines, *point)
        nearest = int(np.nanargmin(np.where(holds, km, np.nan) if holds.any() else km))
        if not holds.any():
            name = self._rows["id"][nearest].as_py()
            raise UserError(
                f"--like {like}: no image holds this place; the nearest, {name} at "
                f"{lon[nearest]:.4f},{lat[nearest]:.4f}, is {km[nearest]:,.1f} km off."
            )
        return nearest

    def _of_file(self, like: str) -> int:
        uris = self._rows["uri"]
        rows = np.flatnonzero(pc.or_(pc.equal(uris, like), pc.ends_with(uris, f"/{like.lstrip('/')}")).to_numpy())
        if len(rows) == 1:
            return int(rows[0])
        if len(rows):
            ids = ", ".join(self._rows["id"].take(rows[:3]).to_pylist())
            raise UserError(f"--like {like}: {len(rows):,} rows are of such a file; give one's id: {ids}, ...")
        raise UserError(
            f"--like {like}: no row has this id or is of such a file; give an id, a file's name, or LON,LAT in degrees."
        )


class MapVectors:
    """Vectors of the cells of a scene, see ``scenes.cog``; row by row.

    Attributes:
        count, width: N and D.
        columns: of cells.
        made_of: the scene.
        cell_px: side of a cell in its pixels.
    """

    columns: int | None

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with rasterio.open(path) as file:
                tags, self.width, self._block = file.tags(), file.count, file.block_shapes[0][0]
                self._rows, self._across = int(file.height), int(file.width)
                self._transform = tuple(file.transform)[:6]
                self._crs = None if file.crs is None else file.crs.to_wkt()
        except RasterioError as error:
            raise UserError(
                f"{path} is no GeoTIFF that can be read ({error}); make it with terrasieve embed."
            ) from error
        if "terrasieve_encoder" not in tags:
            raise UserError(f"{path} is no map of features; make one with terrasieve embed RUN SCENE -o features.tif.")
        self.made_of, self.cell_px = tags["terrasieve_scene"], int(tags["cell_px"])
        self.columns, self.count = self._across, self._rows * self._across

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Return all vectors, (n, D) at a time; NaN where there is no data."""
        with rasterio.Env(GDAL_CACHEMAX=64), rasterio.open(self.path) as file:
            for top in range(0, self._rows, self._block):
                rows = min(self._block, self._rows - top)
                values = file.read(window=rasterio.windows.Window(0, top, self._across, rows))
                yield values.reshape(self.width, -1).T.astype(np.float32, copy=False)

    def places(self, rows: Sequence[int]) -> Places:
        """Return where vectors are from."""
        down, across = np.divmod(np.asarray(rows, np.int64), self._across)
        lonlat = np.full((len(down), 2), np.nan)
        if self._crs is not None:
            one = np.ones_like(down)
            _, lonlat = geo.window_places(self._transform, self._crs, np.stack([across, down, one, one], 1))
        c = self.cell_px
        windows: list[Window | None] = [
            (x * c, y * c, c, c) for x, y in zip(across.tolist(), down.tolist(), strict=True)
        ]
        ids = [f"{row},{column}" for row, column in zip(down.tolist(), across.tolist(), strict=True)]
        return Places(ids, [self.made_of] * len(ids), windows, lonlat)

    def find(self, like: str) -> int:
        """Return the row of "longitude,latitude"; of a map without a CRS, of "x,y" in pixels of the scene.

        Raises:
            UserError: it does not lie in the scene, or has another form.
        """
        point = lonlat_of(like)
        if point is None:
            raise UserError(f"--like {like}: of a scene, give LON,LAT in degrees.")
        if self._crs is None:
            x, y = point[0] / self.cell_px, point[1] / self.cell_px
        else:
            ground = Transformer.from_crs("OGC:CRS84", self._crs, always_xy=True).transform(*point)
            x, y = ~rasterio.Affine(*self._transform) * ground
        if not (0 <= x < self._across and 0 <= y < self._rows):
            (lon, lat), far = self.places([0]).lonlat_N2[0], self.places([self.count - 1]).lonlat_N2[0]
            where = (
                f"; its corners are at {lon:.4f},{lat:.4f} and {far[0]:.4f},{far[1]:.4f}" if np.isfinite(lon) else ""
            )
            raise UserError(f"--like {like}: the scene {self.made_of} does not hold this place{where}.")
        return int(y) * self._across + int(x)


Vectors = TableVectors | MapVectors


def open_vectors(path: Path) -> Vectors:
    """Open a file of ``terrasieve embed``.

    Raises:
        UserError: it is none.
    """
    if not path.is_file():
        raise UserError(f"There is no file {path}. Make one with terrasieve embed RUN IMAGES -o {path}.")
    return MapVectors(path) if path.suffix.lower() in (".tif", ".tiff") else TableVectors(path)


def lonlat_of(like: str) -> tuple[float, float] | None:
    """Return two numbers of "a,b", None of anything else."""
    try:
        first, second = (float(part) for part in like.split(","))
    except ValueError:
        return None
    return first, second
