"""Maps: every pixel once and far from a window's edge, at the image's place, whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given
from hypothesis import strategies as some
from PIL import Image
from rasterio.transform import Affine

from terrasieve import manifest
from terrasieve.batch import Batch
from terrasieve.curate.scan import scan
from terrasieve.data.augment import ImageSettings
from terrasieve.data.images import Images, from_table
from terrasieve.errors import UserError
from terrasieve.evaluate.maps import Part, palette, predicted_parts, side_by_side, spans, whole, write_geotiff

SETTINGS = ImageSettings(size_px=(16, 24), mean=(0.0,), std=(1.0,))
NAMES = ("dark", "middle", "bright")


@given(some.integers(1, 300), some.integers(1, 64), some.floats(0, 0.99))
def test_spans_cover_an_axis_once_and_keep_off_the_edges(length: int, side: int, share: float) -> None:
    overlap = int(share * side)
    found = spans(length, side, overlap)
    covered = [pixel for span in found for pixel in range(span.core_start, span.core_stop)]
    assert covered == list(range(length))
    for span in found:
        assert span.stop - span.start == side and span.start >= 0 and (span.stop <= length or len(found) == 1)
        assert span.core_start == 0 or span.core_start - span.start >= overlap // 2
        assert span.core_stop == length or span.stop - span.core_stop >= overlap // 2
    assert len(found) == 1 or length > side


def by_brightness(batch: Batch, generator: torch.Generator) -> torch.Tensor:
    """Tell three levels of brightness apart, pixel by pixel."""
    assert batch.image.shape[-2:] == SETTINGS.shape_px
    return torch.stack([-(batch.image[:, 0] - level).abs() for level in (0.0, 100.0, 200.0)], dim=1)


def image(folder: Path, height: int, width: int, **how: Any) -> tuple[Images, np.ndarray]:
    rows = np.add.outer(np.arange(height) * 3, np.arange(width) * 7) // 40 % 3
    shape = {"count": 1, "height": height, "width": width, "dtype": "uint8"}
    with rasterio.open(folder / "image.tif", "w", driver="GTiff", **shape, **how) as file:
        file.write((rows * 100).astype(np.uint8)[None])
    return from_table(scan([folder], pattern="image.tif", labels="none").table), rows.astype(np.uint8)


@pytest.mark.parametrize("shape", [(16, 24), (16, 25), (70, 101), (5, 7), (40, 9)], ids=str)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
def test_any_size_is_mapped_pixel_by_pixel(tmp_path: Path, shape: tuple[int, int], overlap: float) -> None:
    images, expected = image(tmp_path, *shape)
    parts = predicted_parts(by_brightness, images, 0, SETTINGS, overlap=overlap, batch_size=3)
    assert np.array_equal(whole(parts, *shape), expected)


def test_windows_of_another_size_are_resampled_to_what_the_method_sees(tmp_path: Path) -> None:
    images, _ = image(tmp_path, 64, 96)
    with rasterio.open(tmp_path / "image.tif", "r+") as file:
        expected = np.zeros((64, 96), np.uint8)
        expected[:, 48:] = 2
        file.write(expected[None] * 100)
    parts = predicted_parts(by_brightness, images, 0, SETTINGS, window_px=(32, 48), overlap=0.0)
    found = whole(parts, 64, 96)
    assert np.array_equal(found[:, :46], expected[:, :46]) and np.array_equal(found[:, 50:], expected[:, 50:])


def test_pixels_without_data_are_no_class(tmp_path: Path) -> None:
    images, expected = image(tmp_path, 30, 50, nodata=200)
    expected[expected == 2] = 255
    assert np.array_equal(whole(predicted_parts(by_brightness, images, 0, SETTINGS), 30, 50), expected)


@pytest.mark.parametrize("down", [-2.0, 2.0], ids=["north up", "south up"])
def test_a_map_lies_where_its_window_of_the_image_lies(tmp_path: Path, down: float) -> None:
    place = Affine(2.0, 0.0, 500000.0, 0.0, down, 6100000.0)
    image(tmp_path, 40, 60, crs="EPSG:32721", transform=place)
    (row,) = scan([tmp_path], labels="none").table.to_pylist()
    images = from_table(manifest.rows_to_table([row | {"window": [10, 5, 30, 20], "width": 30, "height": 20}]))
    path = tmp_path / "maps" / "map.tif"
    write_geotiff(predicted_parts(by_brightness, images, 0, SETTINGS), images, 0, NAMES, path)
    with rasterio.open(path) as file, rasterio.open(tmp_path / "image.tif") as source:
        assert file.crs == source.crs and file.transform == Affine(2.0, 0.0, 500020.0, 0.0, down, 6100000.0 + 5 * down)
        assert (file.width, file.height, file.count, file.dtypes, file.nodata) == (30, 20, 1, ("uint8",), 255)
        assert file.tags()["classes"] == "dark,middle,bright"
        assert file.colormap(1)[2] == (*palette(3)[2], 255) and file.colormap(1)[255][3] == 0
        assert np.array_equal(file.read(1), source.read(1)[5:25, 10:40] // 100)
    assert [p.name for p in path.parent.iterdir()] == ["map.tif"]


def test_an_image_without_coordinates_gives_a_map_without(tmp_path: Path) -> None:
    Image.fromarray(np.full((20, 30), 100, np.uint8)).save(tmp_path / "image.png")
    images = from_table(scan([tmp_path], labels="none").table)
    path = tmp_path / "map.tif"
    write_geotiff(predicted_parts(by_brightness, images, 0, SETTINGS), images, 0, NAMES, path, [(1, 2, 3)] * 3)
    with rasterio.open(path) as file:
        assert file.crs is None and (file.read(1) == 1).all() and file.colormap(1)[0] == (1, 2, 3, 255)


def test_a_map_that_fails_leaves_nothing(tmp_path: Path) -> None:
    images, _ = image(tmp_path, 40, 60)

    def broken() -> Iterator[Part]:
        yield 0, 0, np.zeros((4, 4), np.uint8)
        raise UserError("the disk was pulled out")

    with pytest.raises(UserError, match="pulled out"):
        write_geotiff(broken(), images, 0, NAMES, tmp_path / "map.tif")
    assert [p.name for p in tmp_path.iterdir()] == ["image.tif"]


def test_settings_have_to_be_complete(tmp_path: Path) -> None:
    images, _ = image(tmp_path, 20, 20)
    with pytest.raises(UserError, match=r"recipe\.yaml"):
        next(predicted_parts(by_brightness, images, 0, ImageSettings(size_px=16)))
    with pytest.raises(UserError, match="overlap: 1"):
        next(predicted_parts(by_brightness, images, 0, SETTINGS, overlap=1.0))


def test_colours_are_all_different() -> None:
    assert len(set(palette(40))) == 40


def test_image_truth_and_prediction_side_by_side() -> None:
    array = np.arange(3 * 20 * 30, dtype=np.uint16).reshape(3, 20, 30)
    truth = np.full((20, 30), 1, np.uint8)
    truth[:, :10] = 255
    drawn = Image.open(io.BytesIO(side_by_side(array, [truth, truth * 0], NAMES, ("red", "green", "blue"))))
    assert drawn.format == "PNG" and drawn.size[0] == 3 * 30 + 2 * 4 and drawn.size[1] > 20
    assert drawn.getpixel((34, 0)) == (0, 0, 0) and drawn.getpixel((34 + 20, 0)) == palette(3)[1]
    assert drawn.getpixel((68, 0)) == palette(3)[0]
    small = Image.open(io.BytesIO(side_by_side(array, [truth], NAMES, ("a", "b", "c"), largest_px=15)))
    assert small.size[0] == 15 + 4 + 15
