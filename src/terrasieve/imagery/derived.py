"""Derived images: rasters that no single image file holds, each addressed by a uri that says how to make it.

Public data sets keep one file per band (BigEarthNet, SSL4EO-S12), many images in one HDF5 or netCDF file (So2Sat,
Sen4AgriNet) or outlines instead of a mask (SpaceNet). ``headers`` and ``raster`` read such uris as they read a file, so
nothing has to be converted first:

    patch_{}.tif#stack=B02,B03,B04          one file per band; {} becomes each name
    chips.h5#array=/sen2&index=17           one image of an array (N, rows, columns, bands), or (N, rows, columns)
    tile.nc#array=/{}/{}&index=3&stack=B02  both
    roofs.geojson#burn=1&like=scene.tif     outlines drawn with 1, or with their property of the name given instead
                                            of a number, on the pixels of another image; the rest 0

The first band says which size the image has and where it lies; the others are brought to that size by their nearest
pixel. Written by ``data.catalog``. Source
of the HDF5 and netCDF-4 format: HDF5 1.14, read with h5py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from terrasieve.errors import UserError
from terrasieve.imagery.bands import guess_band_names
from terrasieve.imagery.unreadable import UnreadableImage

if TYPE_CHECKING:
    from terrasieve.imagery.headers import Header
    from terrasieve.imagery.raster import Pixels

_KINDS = ("stack=", "array=", "burn=")


@dataclass(frozen=True)
class Derived:
    """A derived image, taken apart.

    Attributes:
        uri: the whole of it.
        path: file, or with ``{}`` the pattern of several.
        stack: what ``{}`` stands for, band by band; () = there is one part.
        array: name of an array in the file; with ``{}`` a pattern.
        index: along the array's first axis.
        burn: number that outlines are drawn with, or name of the property that holds it.
        like: image whose pixels they are drawn on.
    """

    uri: str
    path: str
    stack: tuple[str, ...] = ()
    array: str = ""
    index: int | None = None
    burn: str = ""
    like: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that it is made of."""
        files = [self.path.replace("{}", name) for name in self.stack] or [self.path]
        return tuple(dict.fromkeys([*files, *([self.like] if self.like else [])]))


def parse(uri: str) -> Derived | None:
    """Take the address of a derived image apart; None for any other uri."""
    path, mark, rest = uri.partition("#")
    if not mark or not rest.startswith(_KINDS):
        return None
    given = dict(part.partition("=")[::2] for part in rest.split("&"))
    try:
        index = int(given["index"]) if "index" in given else None
        stack = tuple(name for name in given.get("stack", "").split(",") if name)
        return Derived(uri, path, stack, given.get("array", ""), index, given.get("burn", ""), given.get("like", ""))
    except ValueError as error:
        raise UnreadableImage(uri, "unreadable", f"not an address of a derived image: {error}") from error


def files_of(uri: str) -> tuple[str, ...]:
    """Return the files that an image is made of: itself, unless it is derived."""
    found = parse(uri)
    return (uri,) if found is None else found.files


def header(image: Derived, ends: bool, max_pixels: int) -> Header:
    """Read the header of the first part as ``headers.header`` does; reading pixels tells what is wrong with others."""
    from terrasieve.imagery import headers

    if image.burn:
        like = headers.header(image.like, ends=ends, max_pixels=max_pixels)
        _outlines(image)
        return replace(like, bands=("mask",), dtype="uint8", format="geojson", nodata=None)
    if image.array:
        arrays = _arrays(image)
        height, width = arrays[0].shape[:2]
        bands = list(image.stack) or [f"band_{i + 1}" for i in range(arrays[0].shape[2])]
        dtype = np.result_type(*(array.dtype for array in arrays)).name
        return headers.Header(width, height, _named(image, bands), dtype, "hdf5")
    first = headers.header(image.files[0], ends=ends, max_pixels=max_pixels)
    if len(first.bands) != 1:
        raise UnreadableImage(image.uri, "unreadable", f"{image.files[0]} has {len(first.bands)} bands; a part has one")
    return replace(first, bands=_named(image, image.stack), format="stack")


def read(image: Derived, window: Sequence[int] | None, bands: Sequence[int] | None) -> Pixels:
    """Decode a derived image; arguments, result and errors as of ``raster.read``."""
    from terrasieve.imagery.raster import Pixels

    if image.burn:
        return Pixels(_part(image.uri, _burnt(image)[None], window, bands), None)
    chosen = range(len(image.stack)) if bands is None else bands
    if image.array:
        arrays = _arrays(image)
        if not image.stack:
            return Pixels(_part(image.uri, np.ascontiguousarray(arrays[0].transpose(2, 0, 1)), window, bands), None)
        planes = [array[:, :, 0] for array in arrays]
        height, width = planes[0].shape
        return Pixels(_part(image.uri, np.stack([_sized(p, height, width) for p in planes]), window, bands), None)
    missing = [band for band in chosen if not 0 <= band < len(image.stack)]
    if missing:
        raise UnreadableImage(
            image.uri, "missing_band", f"no band {missing[0]}: it has bands 0 to {len(image.stack) - 1}"
        )
    return _read_files(image, window, list(chosen))


def _read_files(image: Derived, window: Sequence[int] | None, bands: list[int]) -> Pixels:
    """Read the files of some bands, in the size of the first file whichever are wanted."""
    from terrasieve.imagery import headers, raster

    own = [raster.read(image.files[band]) for band in bands]
    if 0 in bands:
        height, width = own[bands.index(0)].array.shape[1:]
    else:
        grid = headers.header(image.files[0])
        height, width = grid.height, grid.width
    planes = np.stack([_sized(pixels.array[0], height, width) for pixels in own])
    valid = np.ones((height, width), np.bool_)
    for pixels in own:
        if pixels.valid is not None:
            valid &= _sized(pixels.valid, height, width)
    valid = _part(image.uri, valid[None], window, None)[0]
    return raster.Pixels(_part(image.uri, planes, window, None), None if valid.all() else valid)


def _named(image: Derived, bands: Sequence[str]) -> tuple[str, ...]:
    return tuple(guess_band_names(len(bands), [name.rpartition("/")[2] for name in bands]))


def _sized(plane: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Bring a plane to a size, each new pixel the one in whose area its centre lies."""
    if plane.shape == (height, width):
        return plane
    rows = (np.arange(height) * 2 + 1) * plane.shape[0] // (2 * height)
    columns = (np.arange(width) * 2 + 1) * plane.shape[1] // (2 * width)
    return np.asarray(plane[rows[:, None], columns])


def _part(uri: str, planes: NDArray[Any], window: Sequence[int] | None, bands: Sequence[int] | None) -> NDArray[Any]:
    count, height, width = planes.shape
    if window is not None:
        x, y, w, h = window
        if w < 1 or h < 1 or x < 0 or y < 0 or x + w > width or y + h > height:
            detail = f"x {x}, y {y}, {w} x {h} pixels does not fit in an image of {width} x {height}"
            raise UnreadableImage(uri, "bad_window", detail)
        planes = planes[:, y : y + h, x : x + w]
    missing = [band for band in bands or () if not 0 <= band < count]
    if missing:
        raise UnreadableImage(uri, "missing_band", f"no band {missing[0]}: it has bands 0 to {count - 1}")
    return np.asarray(planes if bands is None else planes[list(bands)])


def _arrays(image: Derived) -> list[NDArray[Any]]:
    """Read the arrays of an image: (rows, columns, bands) each, one per name of the stack or one in all."""
    h5py = need_h5py(image.path)
    try:
        with h5py.File(image.path, "r") as file:
            found = []
            for name in image.stack or ("",):
                array = file[image.array.replace("{}", name)]
                if image.index is not None and not 0 <= image.index < len(array):
                    raise UnreadableImage(image.uri, "bad_window", f"there are {len(array)} images in {image.array}")
                values = np.asarray(array[...] if image.index is None else array[image.index])
                found.append(values[:, :, None] if values.ndim == 2 else values)
    except FileNotFoundError as error:
        raise UnreadableImage(image.uri, "missing", f"there is no {image.path}") from error
    except KeyError as error:
        raise UnreadableImage(image.uri, "missing_band", f"{image.path} has no array {image.array}: {error}") from error
    except OSError as error:
        raise UnreadableImage(image.uri, "unreadable", str(error)) from error
    wrong = [values.shape for values in found if values.ndim != 3 or (image.stack and values.shape[2] != 1)]
    if wrong:
        raise UnreadableImage(image.uri, "unreadable", f"an image of {wrong[0]} is not rows, columns and bands")
    return found


def need_h5py(path: str | Path) -> Any:
    """Return the module h5py, or say how to get it.

    Raises:
        UserError: it is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{path} is read with h5py, which is not installed: pip install 'terrasieve[hdf5]'.") from error
    return h5py


def _outlines(image: Derived) -> list[tuple[dict[str, Any], int]]:
    """Return the polygons of a GeoJSON file and the number that each is drawn with; what has no area is left out."""
    try:
        found = []
        for feature in json.loads(Path(image.path).read_text(encoding="utf-8"))["features"]:
            shape = feature["geometry"]
            if shape and shape.get("coordinates") and "Polygon" in str(shape.get("type")):
                value = image.burn if image.burn.isdigit() else feature["properties"][image.burn]
                found.append((shape, int(value)))
    except FileNotFoundError as error:
        raise UnreadableImage(image.uri, "missing", f"there is no {image.path}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnreadableImage(image.uri, "unreadable", f"{image.path} is no GeoJSON of features: {error!r}") from error
    return found


def _burnt(image: Derived) -> NDArray[np.uint8]:
    """Draw outlines, longitude and latitude as GeoJSON has them, on the grid of the other image."""
    import rasterio
    from rasterio.features import rasterize
    from rasterio.warp import transform_geom

    from terrasieve.imagery import headers

    grid = headers.header(image.like)
    if grid.transform is None or grid.crs is None:
        raise UnreadableImage(image.uri, "unreadable", f"{image.like} has no coordinates to draw outlines on")
    shapes = [(transform_geom("OGC:CRS84", grid.crs, shape), value) for shape, value in _outlines(image)]
    if not shapes:
        return np.zeros((grid.height, grid.width), np.uint8)
    drawn = rasterize(
        shapes,
        out_shape=(grid.height, grid.width),
        transform=rasterio.Affine(*grid.transform),
        dtype="uint8",
    )
    return np.asarray(drawn)
