"""Image files written by other libraries, and the code with which reading one fails."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from terrasieve.imagery.raster import UnreadableImage, read


def noise(bands: int, height: int, width: int, dtype: str = "uint8") -> np.ndarray:
    top = np.iinfo(dtype).max if np.dtype(dtype).kind in "iu" else 1
    values = np.random.default_rng(bands * 1000 + width).random((bands, height, width)) * 0.9 + 0.05
    return (values * top).astype(dtype)


def save_tiff(path: Path, array: np.ndarray, **profile) -> Path:
    colours = profile.pop("colours", None)
    mask = profile.pop("mask", None)
    count, height, width = array.shape
    profile = {"crs": "EPSG:32721", "transform": from_origin(300_000, 6_200_000, 10, 10), **profile}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", "GTiff", width, height, count, dtype=array.dtype, **profile) as file,
    ):
        if colours:
            file.colorinterp = colours
        file.write(array)
        if mask is not None:
            file.write_mask(mask)
    return path


def save_image(path: Path, array: np.ndarray, mode: str | None = None, **options) -> Path:
    image = Image.fromarray(array) if mode is None else Image.fromarray(array).convert(mode)
    image.save(path, **options)
    return path


def fails(uri: Path, *, window=None, bands=None, **options) -> str:
    with pytest.raises(UnreadableImage) as caught:
        read(str(uri), window, bands, **options)
    assert str(uri) in str(caught.value)
    assert caught.value.reason.startswith(caught.value.code + ": ")
    return caught.value.code
