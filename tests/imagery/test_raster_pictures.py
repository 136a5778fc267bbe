"""Decoding JPEG, PNG and other formats of pictures against the libraries that wrote them, whole and broken."""

import struct
from datetime import UTC, datetime

import numpy as np
import pytest
import rasterio
from files_of_others import fails, noise, save_image
from PIL import Image

from terrasieve.imagery.raster import UnreadableImage, header, read


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
