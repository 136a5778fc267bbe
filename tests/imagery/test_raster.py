"""Decoding and headers of TIFF, and of what is broken, against files written by other libraries."""

import io
import multiprocessing
import os
import pickle
import struct
import zlib
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
from files_of_others import fails, noise, save_image, save_tiff
from rasterio.enums import ColorInterp

from terrasieve.imagery.bands import SENSORS, guess_band_names
from terrasieve.imagery.raster import UnreadableImage, header, read

SHARED = Path(os.environ.get("TERRASIEVE_SHARED", Path(__file__).resolve().parents[2] / "../shared")) / "data"


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"])
@pytest.mark.parametrize("bands", [1, 2, 5, 13])
def test_tiff_of_any_type_comes_back_exactly(tmp_path, dtype, bands):
    array = noise(bands, 40, 50, dtype)
    uri = str(save_tiff(tmp_path / "a.tif", array, compress="deflate"))
    pixels, found = read(uri), header(uri, ends=True)
    assert pixels.array.dtype == array.dtype and np.array_equal(pixels.array, array) and pixels.valid is None
    assert (found.width, found.height, len(found.bands), found.dtype) == (50, 40, bands, dtype)
    assert (found.format, found.crs, found.gsd_m) == ("tiff", "EPSG:32721", 10.0)
    assert np.array_equal(read(uri, (7, 3, 20, 30), [bands - 1, 0]).array, array[[bands - 1, 0], 3:33, 7:27])


@pytest.mark.parametrize(
    "profile", [{"BIGTIFF": "YES"}, {"ENDIANNESS": "BIG"}, {"tiled": True, "blockxsize": 16, "blockysize": 16}, {}]
)
@pytest.mark.parametrize("compress", [None, "lzw", "zstd"])
def test_tiff_layouts_and_their_truncation(tmp_path, profile, compress):
    uri = save_tiff(tmp_path / "a.tif", noise(3, 64, 64, "uint16"), compress=compress, **profile)
    assert header(str(uri), ends=True).width == 64
    data = uri.read_bytes()
    for part in (0.2, 0.5, 0.9, 0.999):
        uri.write_bytes(data[: int(len(data) * part)])
        with pytest.raises(UnreadableImage) as caught:
            header(str(uri), ends=True)
        assert caught.value.code in ("truncated", "huge_header")
        assert fails(uri) in ("truncated", "huge_header")


def test_sparse_tiff_is_whole(tmp_path):
    path = tmp_path / "sparse.tif"
    options = {"tiled": True, "blockxsize": 16, "blockysize": 16, "SPARSE_OK": True}
    with rasterio.open(path, "w", "GTiff", 64, 64, 1, dtype="uint8", **options) as file:
        file.write(np.full((1, 16, 16), 7, np.uint8), window=rasterio.windows.Window(16, 16, 16, 16))
    assert header(str(path), ends=True).width == 64
    assert read(str(path)).array.sum() == 7 * 256


def test_nodata_masks(tmp_path):
    array = noise(3, 16, 16, "float32")
    array[1, 2, 3], array[0, 5, 5], array[2, 7, 7] = -9999, np.nan, np.inf
    pixels = read(str(save_tiff(tmp_path / "sentinel.tif", array, nodata=-9999)))
    assert sorted(zip(*np.nonzero(~pixels.valid), strict=True)) == [(2, 3), (5, 5), (7, 7)]
    assert read(str(tmp_path / "sentinel.tif"), bands=[1]).valid.sum() == 255
    assert read(str(tmp_path / "sentinel.tif"), (8, 8, 8, 8)).valid is None
    dark = noise(3, 16, 16, "uint16")
    dark[1, 2, 3] = 0  # one dark band is dark; all of them at 0 are no data
    dark[:, 4, 4] = 0
    valid = read(str(save_tiff(tmp_path / "zero.tif", dark, nodata=0))).valid
    assert list(zip(*np.nonzero(~valid), strict=True)) == [(4, 4)]
    assert header(str(tmp_path / "zero.tif")).nodata == 0
    mask = np.full((16, 16), 255, np.uint8)
    mask[:3] = 0
    inner = save_tiff(tmp_path / "mask.tif", noise(3, 16, 16), mask=mask)
    assert np.array_equal(read(str(inner)).valid, mask > 0)


def test_tiff_alpha_is_a_mask_only_where_it_looks_like_one(tmp_path):
    colours = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    array = noise(4, 32, 32)
    path = str(save_tiff(tmp_path / "nir.tif", array, colours=colours))  # near infrared called alpha by its writer
    assert header(path).bands == ("band_1", "band_2", "band_3", "band_4")
    assert np.array_equal(read(path).array, array) and read(path).valid is None
    array[3] = 255
    array[3, :4] = 0
    path = str(save_tiff(tmp_path / "alpha.tif", array, colours=colours))
    assert header(path).bands == ("red", "green", "blue", "alpha")
    assert np.array_equal(read(path, bands=[0]).valid, array[3] > 0) and np.array_equal(read(path).array, array)


def test_windows_and_bands_outside_are_refused(tmp_path):
    tiff = save_tiff(tmp_path / "a.tif", noise(3, 20, 30))
    jpeg = save_image(tmp_path / "a.jpg", noise(3, 20, 30).transpose(1, 2, 0))
    png = save_image(tmp_path / "a.png", noise(3, 20, 30).transpose(1, 2, 0))
    for path in (tiff, jpeg, png):
        for window in ((20, 0, 11, 5), (0, 16, 5, 5), (-1, 0, 5, 5), (0, 0, 0, 5)):
            assert fails(path, window=window) == "bad_window"
        assert fails(path, bands=[0, 3]) == fails(path, bands=[-1]) == "missing_band"
        assert fails(path, max_pixels=599) == "huge_header"
        assert read(str(path), (10, 0, 20, 20), [2]).array.shape == (1, 20, 20)


def test_headers_that_promise_more_than_the_file_holds(tmp_path):
    jpeg = save_image(tmp_path / "a.jpg", noise(3, 20, 30).transpose(1, 2, 0)).read_bytes()
    at = jpeg.index(b"\xff\xc0") + 5
    png = save_image(tmp_path / "a.png", noise(3, 20, 30).transpose(1, 2, 0)).read_bytes()
    for side in (60_000, 20_000):
        (tmp_path / "huge.jpg").write_bytes(jpeg[:at] + struct.pack(">HH", side, side) + jpeg[at + 4 :])
        head = b"IHDR" + struct.pack(">II", side, side) + png[24:29]
        (tmp_path / "huge.png").write_bytes(png[:12] + head + struct.pack(">I", zlib.crc32(head)) + png[33:])
        for name in ("huge.jpg", "huge.png"):
            with pytest.raises(UnreadableImage, match="cannot hold") as caught:
                header(str(tmp_path / name))
            assert caught.value.code == "huge_header"
    assert fails(tmp_path / "huge.jpg") and fails(tmp_path / "huge.png")


def test_constant_images_are_not_taken_for_huge_headers(tmp_path):
    flat = np.full((4096, 4096), 90, np.uint8)  # the smallest file that a decoder accepts for its size
    for name, options in (
        ("a.png", {"compress_level": 9}),
        ("a.jpg", {"quality": 1, "optimize": True}),
        ("b.jpg", {"quality": 1, "progressive": True}),
    ):
        path = save_image(tmp_path / name, flat, **options)
        assert header(str(path), ends=True).width == 4096


def test_files_that_are_no_images(tmp_path):
    for name, data, code in (
        ("empty.tif", b"", "empty"),
        ("text.jpg", b"<html>404 not found</html>", "not_an_image"),
        ("short.jpg", b"\xff\xd8\xff", "truncated"),
        ("short.png", b"\x89PNG\r\n\x1a\n", "truncated"),
        ("short.tif", b"II*\0\x08\0\0\0", "truncated"),
        ("odd.tif", b"II*\0", "truncated"),
        ("noise.tif", b"II*\0" + bytes(range(200)), "truncated"),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(UnreadableImage) as caught:
            header(str(path), ends=True)
        assert caught.value.code == code, name
        fails(path)
    assert fails(tmp_path / "nothing.tif") == "missing"
    assert fails(tmp_path) == "unreadable"


def test_zero_bands(tmp_path):
    tags = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 0)]
    body = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    path = tmp_path / "zero.tif"
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + bytes(80))
    with pytest.raises(UnreadableImage, match="zero_band"):
        header(str(path), ends=True)
    fails(path)


def test_errors_cross_process_borders():
    error = UnreadableImage("a.tif", "truncated", "at byte 5")
    again = pickle.loads(pickle.dumps(error))
    assert (again.uri, again.code, again.reason, str(again)) == (error.uri, error.code, error.reason, str(error))


def total(uri: str) -> int:
    return int(read(uri).array.sum())


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_reads_in_worker_processes(tmp_path, start):
    array = noise(2, 32, 32, "uint16")
    uri = str(save_tiff(tmp_path / "a.tif", array))
    assert read(uri).array.shape == (2, 32, 32)  # GDAL is awake before the fork
    with ProcessPoolExecutor(2, multiprocessing.get_context(start)) as pool:
        assert list(pool.map(total, [uri] * 4)) == [int(array.sum())] * 4


def test_time_and_names_from_tiff_tags(tmp_path):
    path = save_tiff(tmp_path / "a.tif", noise(3, 8, 8))
    with rasterio.open(path, "r+") as file:
        file.update_tags(TIFFTAG_DATETIME="2020:05:18 13:44:22")
        file.descriptions = ("B02", "B8A", "B12")
    found = header(str(path))
    assert found.datetime == datetime(2020, 5, 18, 13, 44, 22, tzinfo=UTC)
    assert found.bands == ("blue", "nir08", "swir2")


def test_band_names():
    assert guess_band_names(2) == ["band_1", "band_2"]
    assert guess_band_names(1, ["B4"]) == ["b4"]  # red to Sentinel-2 and Landsat 8, near infrared to Landsat 7
    assert guess_band_names(1, ["band 11 "], ["gray"]) == ["band 11"]
    assert guess_band_names(2, ["VV", "VH"]) == ["vv", "vh"]
    assert guess_band_names(2, ["Near Infrared", None], ["gray", "undefined"]) == ["nir", "band_2"]
    assert guess_band_names(2, ["x", "x"]) == ["x", "x_2"]
    assert guess_band_names(4, (), ["red", "green", "blue", "alpha"]) == ["red", "green", "blue", "alpha"]
    assert guess_band_names(3, (), ["gray", "undefined", "undefined"]) == ["band_1", "band_2", "band_3"]
    sentinel = [band.designation.upper() for band in SENSORS["sentinel-2"].bands]
    assert guess_band_names(13, sentinel) == [band.name for band in SENSORS["sentinel-2"].bands]
    for sensor in SENSORS.values():
        assert len({band.name for band in sensor.bands}) == len(sensor.bands)
        assert all(band.wavelength_nm is None or 400 < band.wavelength_nm < 13_000 for band in sensor.bands)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared imagery is not on this machine (TERRASIEVE_SHARED)")
def test_real_files_agree_with_gdal():
    for folder in ("sen1floods11_sample", "landsat_scenes", "hls_chip_texas", "spacenet7_samples", "caffe_samples"):
        for path in sorted((SHARED / folder).rglob("*.tif")):
            pixels, found = read(str(path)), header(str(path), ends=True)
            with rasterio.open(path) as file:
                assert np.array_equal(pixels.array, file.read(), equal_nan=file.dtypes[0] == "float32"), path
                assert (found.width, found.height, len(found.bands)) == (file.width, file.height, file.count)


def test_a_url_is_left_to_gdal(tmp_path):
    data = save_tiff(tmp_path / "a.tif", noise(1, 8, 8)).read_bytes()
    with rasterio.MemoryFile(io.BytesIO(data), ext=".tif") as memory:
        assert read(memory.name).array.shape == (1, 8, 8) and header(memory.name).width == 8
