"""Grey looks at any image: against plain means, with other gains, no data, windows, and a raster too large to read."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import rasterio
import simplejpeg
from PIL import Image

from terrasieve import keyed
from terrasieve.imagery.grey import FULL_PX, grey, means
from terrasieve.imagery.members import member_uri
from terrasieve.imagery.unreadable import UnreadableImage

RGB = ["red", "green", "blue"]


def scene(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth RGB image with some noise."""
    draw = keyed.numpy_generator(seed, "test_grey")
    small = Image.fromarray(draw.integers(30, 220, (6, 6, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def luma_means(image: np.ndarray) -> np.ndarray:
    """32 x 32 means by a naive loop over the luma's pixels, each split where a mean's edge cuts it."""
    luma = image @ np.array([0.299, 0.587, 0.114])
    fine = luma.repeat(32, 0).repeat(32, 1)
    H, W = luma.shape
    return fine.reshape(32, H, 32, W).mean(axis=(1, 3))


def write_tiff(path: Path, planes: np.ndarray, **options: object) -> str:
    shape = {"count": planes.shape[0], "height": planes.shape[1], "width": planes.shape[2], "dtype": planes.dtype}
    with rasterio.open(path, "w", driver="GTiff", **shape, **options) as file:
        file.write(planes)
    return str(path)


@pytest.mark.parametrize(("height", "width"), [(256, 256), (250, 243), (100, 64), (96, 65), (512, 300)])
def test_jpeg_png_and_tiff_show_the_same_means(tmp_path: Path, height: int, width: int) -> None:
    image = scene(height, width)
    jpeg, png = tmp_path / "a.jpg", tmp_path / "a.png"
    jpeg.write_bytes(simplejpeg.encode_jpeg(image, quality=95))
    Image.fromarray(image).save(png)
    tiff = write_tiff(tmp_path / "a.tif", image.transpose(2, 0, 1))
    wanted = luma_means(image)
    for uri, worst in ((str(jpeg), 3), (str(png), 1.01), (tiff, 1.01)):
        found = grey(uri, bands=RGB)
        assert np.abs(found.thumb - wanted).max() < worst
        assert (found.valid_share, found.std) == (1, pytest.approx(wanted.std(), abs=0.7))


def test_bands_are_chosen_by_name_and_alpha_is_none(tmp_path: Path) -> None:
    image = scene(64, 64)
    wanted = grey(write_tiff(tmp_path / "rgb.tif", image.transpose(2, 0, 1)), bands=RGB).thumb
    planes = np.concatenate([np.full((1, 64, 64), 9, np.uint8), image.transpose(2, 0, 1)[::-1]])
    found = grey(write_tiff(tmp_path / "nbgr.tif", planes), bands=["nir", "blue", "green", "red"]).thumb
    np.testing.assert_array_equal(found, wanted)
    Image.fromarray(np.dstack([image, np.full((64, 64), 255, np.uint8)])).save(tmp_path / "a.png")
    with_alpha = grey(str(tmp_path / "a.png"), bands=[*RGB, "alpha"]).thumb
    np.testing.assert_array_equal(with_alpha, wanted)


def test_gain_and_offset_of_other_types_play_no_part(tmp_path: Path) -> None:
    plane = scene(96, 80)[..., :1].transpose(2, 0, 1).astype(np.float32)
    one = grey(write_tiff(tmp_path / "a.tif", plane)).thumb
    other = grey(write_tiff(tmp_path / "b.tif", (plane * 37 + 1000).astype(np.uint16))).thumb
    assert np.abs(one.astype(int) - other).max() <= 1
    assert one.min() == 0 and one.max() == 255
    flat = np.full((1, 64, 64), 3000, np.uint16) + keyed.numpy_generator(0, "flat").integers(0, 20, (1, 64, 64), "u2")
    assert grey(write_tiff(tmp_path / "c.tif", flat)).std < 3, "noise is not stretched into a picture"


def test_no_data_is_counted_and_filled(tmp_path: Path) -> None:
    plane = scene(64, 64)[..., :1].transpose(2, 0, 1).astype(np.int16) + 1
    plane[:, :16] = -9999
    found = grey(write_tiff(tmp_path / "a.tif", plane, nodata=-9999))
    assert found.valid_share == 0.75
    assert len(np.unique(found.thumb[:8])) == 1 and len(np.unique(found.thumb[8:])) > 20
    empty = grey(write_tiff(tmp_path / "b.tif", np.full((1, 64, 64), -9999, np.int16), nodata=-9999))
    assert (empty.valid_share, empty.std) == (0, 0)


@pytest.mark.parametrize("window", [(0, 0, 128, 128), (64, 32, 256, 128), (8, 16, 512, 480)])
def test_a_window_is_what_its_crop_would_be(tmp_path: Path, window: tuple[int, int, int, int]) -> None:
    image, (x, y, w, h) = scene(500, 600), window
    jpeg, png, crop = tmp_path / "a.jpg", tmp_path / "a.png", tmp_path / "crop.png"
    jpeg.write_bytes(simplejpeg.encode_jpeg(image, quality=95))
    Image.fromarray(image).save(png)
    Image.fromarray(image[y : y + h, x : x + w]).save(crop)
    wanted = grey(str(crop), bands=RGB).thumb.astype(int)
    np.testing.assert_array_equal(grey(str(png), window, RGB).thumb, wanted)
    assert np.abs(grey(str(jpeg), window, RGB).thumb - wanted).max() <= 4
    for uri in (jpeg, png):
        with pytest.raises(UnreadableImage, match="bad_window"):
            grey(str(uri), (200, 0, 512, 64), RGB)


def test_a_member_of_a_tar_is_an_image(tmp_path: Path) -> None:
    data = simplejpeg.encode_jpeg(scene(128, 128), quality=90)
    (tmp_path / "a.jpg").write_bytes(data)
    (tmp_path / "a.tar").write_bytes(bytes(512) + data)
    inside = grey(member_uri(str(tmp_path / "a.tar"), "a.jpg", 512, len(data)))
    np.testing.assert_array_equal(inside.thumb, grey(str(tmp_path / "a.jpg")).thumb)


def test_a_raster_beyond_memory_is_decimated(tmp_path: Path) -> None:
    """40,000 x 30,000 px of two bytes, 2.4 GB if it were read whole; a sparse file of a few blocks."""
    path = tmp_path / "a.tif"
    options = {"tiled": True, "blockxsize": 512, "blockysize": 512, "SPARSE_OK": True, "BIGTIFF": "YES"}
    with rasterio.open(
        path, "w", driver="GTiff", width=40_000, height=30_000, count=1, dtype="uint16", **options
    ) as file:
        for x in range(0, 20_000, 512):
            file.write(np.full((1, 512, 512), 5000, np.uint16), window=rasterio.windows.Window(x, 0, 512, 512))
    window = (0, 0, 4096, 4096)
    assert window[2] * window[3] > FULL_PX
    thumb = grey(str(path), window).thumb
    assert (thumb[:4] == 255).all() and (thumb[4:] == 0).all()


def test_a_cut_file_says_so(tmp_path: Path) -> None:
    data = simplejpeg.encode_jpeg(scene(256, 256), quality=90)
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(UnreadableImage, match="truncated"):
        grey(str(tmp_path / "a.jpg"))


def test_means_of_an_image_whose_last_column_is_only_in_part_its_own() -> None:
    image = np.arange(32, dtype=np.uint8)[None].repeat(32, 0)
    found = means(image, 32, 31.25)
    edges = np.linspace(0, 31.25, 33)
    exact = [np.mean(np.floor(np.linspace(a, b, 2001)[:-1])) for a, b in pairwise(edges)]
    np.testing.assert_allclose(found[0], exact, atol=1e-2)
