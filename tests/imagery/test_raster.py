"""Decoding and headers against files written by other libraries, whole and broken."""

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
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from terrasieve.imagery.bands import SENSORS, guess_band_names
from terrasieve.imagery.raster import UnreadableImage, header, read

SHARED = Path(os.environ.get("TERRASIEVE_SHARED", Path(__file__).resolve().parents[2] / "../shared")) / "data"


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


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg(tmp_path, mode, progressive):
    smooth = np.add.outer(np.arange(60), np.arange(80)).astype(np.uint8)
    colour = np.stack([smooth, smooth[::-1], 255 - smooth], axis=-1)
    path = save_image(tmp_path / "a.jpg", colour, mode, quality=95, progressive=progressive)
    pixels, found = read(str(path)), header(str(path), ends=True)
    with rasterio.open(path) as file:
        assert np.abs(pixels.array.astype(int) - file.read()).max() <= 2  # GDAL's own libjpeg as the oracle
    assert found.bands == (("red", "green", "blue") if mode == "RGB" else ("grey",))
    assert (found.width, found.height, found.dtype, found.format) == (80, 60, "uint8", "jpeg")
    part = read(str(path), (5, 10, 20, 30), [0])
    assert np.array_equal(part.array, pixels.array[:1, 10:40, 5:25])
    data = path.read_bytes()
    path.write_bytes(data + b"appended by a camera" * 100)
    assert header(str(path), ends=True) == found and np.array_equal(read(str(path)).array, pixels.array)
    for part_of in (0.3, 0.6, 0.9, 0.999):
        path.write_bytes(data[: int(len(data) * part_of)])
        assert fails(path) == "truncated"
        with pytest.raises(UnreadableImage, match="truncated"):
            header(str(path), ends=True)


def test_jpeg_cmyk_and_long_segments(tmp_path):
    path = save_image(tmp_path / "cmyk.jpg", noise(3, 20, 30).transpose(1, 2, 0), "CMYK")
    assert header(str(path), ends=True).bands == ("red", "green", "blue")  # converted by GDAL
    assert read(str(path)).array.shape == (3, 20, 30)
    data = save_image(tmp_path / "a.jpg", noise(3, 20, 30).transpose(1, 2, 0)).read_bytes()
    segment = b"\xff\xe2" + struct.pack(">H", 65535) + b"\xff\xd9" * 32766 + b"\0"
    path.write_bytes(data[:2] + segment * 4 + b"\xff\xff\xff" + data[2:])  # end markers inside, fill bytes behind
    assert header(str(path), ends=True).width == 30 and read(str(path)).array.shape == (3, 20, 30)
    path.write_bytes((data[:2] + segment * 4 + data[2:])[:-40])
    with pytest.raises(UnreadableImage, match="truncated"):
        header(str(path), ends=True)


def test_exif_gives_place_and_time(tmp_path):
    exif = Image.Exif()
    exif[0x8825] = {1: "S", 2: (34.0, 30.0, 36.0), 3: "W", 4: (58.0, 15.0, 0.0)}
    exif[0x8769] = {0x9003: "2020:05:18 13:44:22"}
    path = save_image(tmp_path / "drone.jpg", noise(3, 20, 30).transpose(1, 2, 0), exif=exif)
    found = header(str(path))
    assert (found.lon, found.lat) == (-58.25, -34.51)
    assert found.datetime == datetime(2020, 5, 18, 13, 44, 22, tzinfo=UTC)


@pytest.mark.parametrize(
    ("mode", "names"),
    [
        ("L", ("grey",)),
        ("LA", ("grey", "alpha")),
        ("RGB", ("red", "green", "blue")),
        ("RGBA", ("red", "green", "blue", "alpha")),
        ("P", ("palette",)),
    ],
)
def test_png_modes(tmp_path, mode, names):
    image = Image.fromarray(noise(3, 20, 30).transpose(1, 2, 0)).convert(mode)
    path = tmp_path / "a.png"
    image.save(path)
    pixels = read(str(path))
    oracle = np.asarray(image).reshape(20, 30, -1).transpose(2, 0, 1)
    assert np.array_equal(pixels.array, oracle) and pixels.valid is None
    assert header(str(path), ends=True).bands == names
    assert np.array_equal(read(str(path), (3, 4, 5, 6), [0]).array, oracle[:1, 4:10, 3:8])


@pytest.mark.parametrize(
    ("name", "options"),
    [("webp", {"lossless": True}), ("bmp", {}), ("jp2", {"irreversible": False}), ("tiff", {"compression": "jpeg"})],
)
def test_other_formats_written_by_pillow(tmp_path, name, options):
    path = save_image(tmp_path / f"a.{name}", noise(3, 64, 48).transpose(1, 2, 0), **options)
    with Image.open(path) as image:
        oracle = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert np.abs(read(str(path), (8, 4, 20, 30)).array.astype(int) - oracle[:, 4:34, 8:28]).max() <= 2 * (
        name == "tiff"
    )
    found = header(str(path), ends=True)
    assert (found.format, found.bands, found.width) == (name, ("red", "green", "blue"), 48)


def test_png_of_one_and_sixteen_bits(tmp_path):
    deep = noise(3, 20, 30, "uint16")
    for name, array in (("rgb16", deep), ("grey16", deep[:1])):
        path = tmp_path / f"{name}.png"
        with rasterio.open(path, "w", "PNG", 30, 20, len(array), dtype="uint16") as file:
            file.write(array)
        assert np.array_equal(read(str(path)).array, array) and header(str(path), ends=True).dtype == "uint16"
        path.write_bytes(path.read_bytes()[:-60])  # GDAL alone would return black rows
        assert fails(path) == "truncated"
    bits = noise(1, 20, 30)[0] > 100
    path = tmp_path / "bits.png"
    Image.fromarray(bits).save(path)
    assert np.array_equal(read(str(path)).array[0] > 0, bits)


def test_png_truncated_and_alpha(tmp_path):
    array = noise(4, 32, 32).transpose(1, 2, 0).copy()
    array[..., 3] = 255
    array[:10, :, 3] = 0
    path = save_image(tmp_path / "a.png", array)
    pixels = read(str(path))
    assert pixels.valid is not None and not pixels.valid[:10].any() and pixels.valid[10:].all()
    assert np.array_equal(read(str(path), bands=[0, 1, 2]).valid, pixels.valid)
    assert read(str(path), bands=[3]).valid is None  # asked for as data
    assert read(str(path), (0, 10, 32, 22)).valid is None
    data = path.read_bytes()
    for part in (0.4, 0.9, 0.999):
        path.write_bytes(data[: int(len(data) * part)])
        assert fails(path) == "truncated"
        with pytest.raises(UnreadableImage, match="truncated"):
            header(str(path), ends=True)


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
