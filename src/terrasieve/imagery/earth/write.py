"""Files of the procedural Earth: GeoTIFFs or JPEGs in class folders, masks, boxes, and rows for the manifest.

Stands last in the package; the command ``terrasieve earth`` calls it and writes the manifest from the rows, whose keys
are the columns of ``terrasieve.manifest.SCHEMA``. What is written for chip ``i`` depends on the arguments and ``i``
alone, so any number of workers gives the same bytes.
"""

from __future__ import annotations

import datetime
import hashlib
import math
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from terrasieve.errors import UserError
from terrasieve.imagery.earth.chip import RGB, SCENES, Chip, Place, render
from terrasieve.imagery.earth.materials import LAND_COVER, MASK_COLOURS
from terrasieve.imagery.earth.sampling import FIRST_DAY, LAST_DAY, sample_place
from terrasieve.keyed import numpy_generator

BLOCK_DEG = 5.0  # side of the squares that go to one split as a whole
TEST_SHARE = 0.2
DEGREE_M = 111_320.0  # of latitude
LEAST_FOR_POOL = 200  # chips; fewer are written before a pool's processes have started
JPEG_QUALITY = 92


@dataclass(frozen=True)
class _Job:
    folder: Path
    seed: int
    series: int
    size_px: int
    bands: tuple[str, ...]
    gsd_m: tuple[float, ...]
    format: str
    masks: bool
    split: str
    scenes: tuple[str, ...]
    visits: int
    shift: float

    def __post_init__(self) -> None:
        if self.format not in ("tif", "jpg"):
            raise UserError(f"write_chips: format = {self.format!r}; choose tif or jpg")
        if self.split not in ("block", "random"):
            raise UserError(f"write_chips: split = {self.split!r}; choose block or random")
        if self.visits < 1 or not 0 <= self.shift < 1:
            raise UserError(
                f"write_chips: visits = {self.visits} is at least 1, and shift = {self.shift} is a share of a chip's "
                "side, 0 to less than 1"
            )


def write_chips(
    out_dir: Path | str,
    n: int,
    seed: int = 0,
    *,
    size_px: int = 96,
    bands: tuple[str, ...] = ("blue", "green", "red", "nir"),
    gsd_m: float | tuple[float, ...] = 10.0,
    format: Literal["tif", "jpg"] = "tif",
    masks: bool = False,
    split: Literal["block", "random"] = "block",
    scenes: tuple[str, ...] = SCENES,
    series: int = 0,
    visits: int = 1,
    shift: float = 0.0,
    workers: int = 1,
    on_chip: Callable[[], None] | None = None,
) -> list[dict[str, Any]]:
    """Write ``n`` chips with their ground truth and return their manifest rows.

    Args:
        out_dir: gets ``images/<scene>/earth_<index>.tif``, ``masks/...`` likewise when asked, and ``boxes.parquet``.
        n, seed, size_px, gsd_m, scenes, series: as in ``sample_places``.
        bands: of a GeoTIFF; a JPEG is always red, green, blue.
        format: "tif": uint16 reflectance x 10 000, georeferenced; "jpg": uint8 display values.
        masks: also write uint8 land cover (``LAND_COVER``) with a colour table.
        split: "block": whole squares of 5 degrees go to test (one in five); "random": single chips do.
        visits: chips of one place, at dates of their own; ``n`` counts chips, and all of a place are in one split.
        shift: a later visit lies up to this share of a chip's side to each direction of the first, which it overlaps.
        workers: processes; the files do not depend on it.
        on_chip: called after every chip, for a progress bar.

    Returns:
        One row per chip, in order of index; keys are the columns of ``manifest.SCHEMA``.

    Raises:
        UserError: an argument is out of its range or the folder cannot be written.
    """
    folder = Path(out_dir).resolve()
    sizes = (float(gsd_m),) if isinstance(gsd_m, (int, float)) else tuple(float(value) for value in gsd_m)
    bands = RGB if format == "jpg" else tuple(bands)
    if n < 1 or workers < 1:
        raise UserError(f"write_chips: n = {n}, workers = {workers}; both are at least 1")
    job = _Job(folder, seed, series, size_px, bands, sizes, format, masks, split, tuple(scenes), visits, shift)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        rows, boxes = [], []
        for row, found in _written(job, n, workers):
            rows.append(row)
            boxes.extend(found)
            if on_chip is not None:
                on_chip()
        _write_boxes(folder / "boxes.parquet", boxes)
    except OSError as error:
        raise UserError(f"write_chips: cannot write to {folder}: {error}; free space or choose another") from error
    return rows


def _written(job: _Job, n: int, workers: int) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    if workers == 1 or n < LEAST_FOR_POOL:
        yield from map(partial(_write, job), range(n))
        return
    # Not forked: the parent may hold threads of torch or GDAL.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(partial(_write, job), range(n), chunksize=16)


def _write(job: _Job, index: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Render chip ``index``, write its files, and return its row and its boxes."""
    dtype: Literal["uint8", "uint16"] = "uint8" if job.format == "jpg" else "uint16"
    first = sample_place(
        index // job.visits, job.seed, gsd_m=job.gsd_m, size_px=job.size_px, bands=job.bands, dtype=dtype,
        scenes=job.scenes, series=job.series,
    )  # fmt: skip
    chip = render(_visit(first, job, index), job.seed)
    # The preview's class may differ from the full chip's in a few cases; the file goes where the pixels say.
    name = f"{chip.label}/earth_{index:06d}"
    path = job.folder / "images" / f"{name}.{job.format}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if job.format == "jpg":
        _write_jpeg(path, chip.image)
    else:
        _write_tiff(path, chip, chip.image, job.bands)
    if job.masks:
        mask_path = job.folder / "masks" / f"{name}.tif"
        mask_path.parent.mkdir(parents=True, exist_ok=True)
        _write_tiff(mask_path, chip, chip.mask[None], ("land_cover",))
    where = split_of(first.lon, first.lat, job.seed) if job.split == "block" else _drawn_split(job, index)
    row = _row(job, chip, path, where)
    return row, [
        {"id": row["id"], "uri": row["uri"], "name": box.name, "xyxy": list(box.xyxy), "obb": list(box.obb)}
        for box in chip.boxes
    ]


def _visit(first: Place, job: _Job, index: int) -> Place:
    """Return chip ``index``'s place: as drawn, or on a later visit another day's and a little beside it."""
    if index % job.visits == 0:
        return first
    draw = numpy_generator(job.seed, "earth.visit", job.series, index)
    day = FIRST_DAY + datetime.timedelta(days=int(draw.integers((LAST_DAY - FIRST_DAY).days + 1)))
    east_m, north_m = draw.uniform(-job.shift, job.shift, 2) * job.size_px * first.gsd_m
    lat = float(np.clip(first.lat + north_m / DEGREE_M, -90.0, 90.0))
    lon = first.lon + east_m / (DEGREE_M * max(math.cos(math.radians(lat)), 0.01))
    return replace(first, lon=(lon + 180.0) % 360.0 - 180.0, lat=lat, date=day)


def _row(job: _Job, chip: Chip, path: Path, split: str) -> dict[str, Any]:
    import shapely

    start = datetime.datetime.combine(chip.place.date, datetime.time(10, 30), datetime.UTC)
    return {
        "id": hashlib.blake2b(str(path).encode(), digest_size=8).hexdigest(),
        "uri": str(path),
        "window": None,
        "width": job.size_px,
        "height": job.size_px,
        "bands": list(job.bands),
        "dtype": str(chip.image.dtype),
        "nodata": 0.0 if job.format == "tif" else None,
        "sensor": "procedural",
        "gsd_m": chip.place.gsd_m,
        "datetime": start - datetime.timedelta(seconds=round(chip.lon * 240.0)),
        "geometry": shapely.Polygon(chip.grid.footprint()).wkb,
        "lon": chip.lon,
        "lat": chip.lat,
        "crs": chip.crs,
        "source": "terrasieve procedural Earth",
        "licence": "CC0-1.0",
        "split": split,
        "label": chip.label,
        "labels": list(chip.labels),
        "phash": None,
        "group": None,
        "keep": True,
        "reason": "",
    }


def split_of(lon: float, lat: float, seed: int) -> str:
    """Return "test" for one in five of the 5-degree squares, "train" for the others."""
    column, row = int((lon + 180.0) // BLOCK_DEG), int((lat + 90.0) // BLOCK_DEG)
    draw = numpy_generator(seed, "earth.block", column, row).random()
    return "test" if draw < TEST_SHARE else "train"


def _drawn_split(job: _Job, index: int) -> str:
    return (
        "test"
        if numpy_generator(job.seed, "earth.split", job.series, index // job.visits).random() < TEST_SHARE
        else "train"
    )


@lru_cache(maxsize=128)
def _crs(name: str) -> Any:
    from rasterio.crs import CRS

    return CRS.from_string(name)


def _write_tiff(path: Path, chip: Chip, pixels: NDArray[Any], names: tuple[str, ...]) -> None:
    import rasterio

    partial_path = path.with_suffix(".part")
    profile = {
        "driver": "GTiff", "dtype": str(pixels.dtype), "count": len(pixels), "height": pixels.shape[1],
        "width": pixels.shape[2], "crs": _crs(chip.crs), "transform": rasterio.Affine(*chip.transform),
        "interleave": "pixel",
    }  # fmt: skip
    if names == ("land_cover",):
        profile |= {"compress": "deflate"}
    else:
        profile |= {"nodata": 0, "photometric": "minisblack"}
    with rasterio.open(partial_path, "w", **profile) as file:
        file.write(pixels)
        for band, name in enumerate(names, start=1):
            file.set_band_description(band, name)
        if names == ("land_cover",):
            file.write_colormap(1, {index: (*colour, 255) for index, colour in enumerate(MASK_COLOURS)})
            file.update_tags(classes=",".join(LAND_COVER))
        else:
            file.update_tags(TIFFTAG_DATETIME=chip.place.date.strftime("%Y:%m:%d 10:30:00"))
    partial_path.replace(path)


def _write_jpeg(path: Path, pixels: NDArray[Any]) -> None:
    import simplejpeg

    data = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels.transpose(1, 2, 0)), quality=JPEG_QUALITY, colorsubsampling="444"
    )
    partial_path = path.with_suffix(".part")
    partial_path.write_bytes(data)
    partial_path.replace(path)


def _write_boxes(path: Path, boxes: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = pa.list_(pa.float32())
    schema = pa.schema(
        [("id", pa.string()), ("uri", pa.string()), ("name", pa.string()), ("xyxy", numbers), ("obb", numbers)]
    )
    partial_path = path.with_suffix(".part")
    pq.write_table(pa.Table.from_pylist(boxes, schema), partial_path)
    partial_path.replace(path)
