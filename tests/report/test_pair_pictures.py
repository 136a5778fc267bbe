"""Pictures of a pair: turned and shifted as the pair says, under one stretch, whatever the files hold."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image

from terrasieve.curate.hashing import ORIENTATIONS
from terrasieve.report.pair_pictures import GAP_PX, pair_picture, pair_pictures, thumbnail


def scene(seed: int = 0, size: int = 60) -> np.ndarray:
    draw = np.random.Generator(np.random.Philox(seed))
    return draw.integers(100, 9000, (3, size, size)).astype(np.uint16)


def row(path: Path, array: np.ndarray, window: list[int] | None = None, **more: Any) -> dict[str, Any]:
    if not path.exists():
        C, H, W = array.shape
        with rasterio.open(path, "w", driver="GTiff", width=W, height=H, count=C, dtype=array.dtype, **more) as file:
            file.write(array)
    H, W = array.shape[1:] if window is None else (window[3], window[2])
    return {"uri": str(path), "window": window, "bands": ["red", "green", "blue"], "width": W, "height": H}


@pytest.mark.parametrize("orientation", range(8))
def test_the_second_is_turned_onto_the_first(tmp_path: Path, orientation: int) -> None:
    quarters, mirrored = ORIENTATIONS[orientation]
    b = scene()[:, :40]  # not square, so that a wrong turn shows
    a = np.rot90(b, quarters, (1, 2))
    a = a[:, :, ::-1] if mirrored else a
    seen = pair_pictures(row(tmp_path / "a.tif", np.ascontiguousarray(a)), row(tmp_path / "b.tif", b), orientation)
    assert seen.left is not None and seen.right is not None and np.array_equal(seen.left, seen.right)
    assert seen.difference is not None and not seen.difference.any() and seen.mean_difference == 0


@pytest.mark.parametrize(("dx", "dy"), [(12, 7), (-12, 7), (0, -20), (30, 30)])
@pytest.mark.parametrize("longest_px", [1024, 50])
def test_the_second_is_shifted_onto_the_first(tmp_path: Path, dx: int, dy: int, longest_px: int) -> None:
    large = scene(size=120).repeat(2, 1).repeat(2, 2)
    dx, dy, factor = 2 * dx, 2 * dy, -(-100 // longest_px)
    a = row(tmp_path / "s.tif", large, [60, 60, 100, 90])
    b = row(tmp_path / "s.tif", large, [60 + dx, 60 + dy, 90, 100])
    seen = pair_pictures(a, b, None, dx, dy, longest_px=longest_px)
    assert seen.left is not None and seen.right is not None and seen.shared_left and seen.shared_right
    assert seen.left.shape[:2] == (90 // factor, 100 // factor) and seen.right.shape[:2] == (
        100 // factor,
        90 // factor,
    )
    x, y, right, bottom = seen.shared_left
    common = min(100, 90 + dx) - max(0, dx), min(90, 100 + dy) - max(0, dy)
    assert (right - x, bottom - y) == (common[0] // factor, common[1] // factor)
    x2, y2, right2, bottom2 = seen.shared_right
    assert np.array_equal(seen.left[y:bottom, x:right], seen.right[y2:bottom2, x2:right2])
    assert seen.mean_difference == 0


def test_no_ground_in_common(tmp_path: Path) -> None:
    a = row(tmp_path / "a.tif", scene())
    seen = pair_pictures(a, a, 0, 60, 0)
    assert seen.shared_left is None and seen.difference is None and seen.left is not None
    assert len(pair_picture(a, a, 0, 60, 0)) > 1000


def test_one_stretch_for_both_shows_that_one_is_darker(tmp_path: Path) -> None:
    seen = pair_pictures(row(tmp_path / "a.tif", scene()), row(tmp_path / "b.tif", scene() // 2))
    assert seen.common and seen.left is not None and seen.right is not None
    assert seen.left.mean() > 1.5 * seen.right.mean()
    other = pair_pictures(row(tmp_path / "a.tif", scene()), row(tmp_path / "c.tif", (scene() // 36).astype(np.uint8)))
    assert not other.common and other.mean_difference is not None and other.mean_difference < 0.1


def test_another_size_is_resampled(tmp_path: Path) -> None:
    b = scene(size=30)
    seen = pair_pictures(row(tmp_path / "a.tif", b.repeat(2, 1).repeat(2, 2)), row(tmp_path / "b.tif", b))
    assert seen.difference is not None and seen.difference.shape == (30, 30, 3) and seen.mean_difference is not None
    assert seen.mean_difference < 1e-6


def test_no_data_in_either_plays_no_part(tmp_path: Path) -> None:
    a, b = scene(), scene()
    b[:, :20] = 0
    seen = pair_pictures(row(tmp_path / "a.tif", a), row(tmp_path / "b.tif", b, nodata=0))
    assert seen.mean_difference == 0 and seen.right is not None and (seen.right[:20] == 128).all()


def test_an_image_that_cannot_be_read_leaves_a_picture_with_words(tmp_path: Path) -> None:
    a = row(tmp_path / "a.tif", scene())
    gone = a | {"uri": str(tmp_path / "gone.tif")}
    seen = pair_pictures(a, gone)
    assert seen.left is not None and seen.right is None and seen.errors[1].startswith("missing") and not seen.errors[0]
    for pair in ((a, gone), (gone, a), (gone, gone)):
        sheet = Image.open(io.BytesIO(pair_picture(*pair, tile_px=100)))
        assert sheet.size == (300 + 2 * GAP_PX, 100) and sheet.format == "JPEG"


def test_thumbnails_are_small(tmp_path: Path) -> None:
    assert max(Image.open(io.BytesIO(thumbnail(row(tmp_path / "a.tif", scene(size=500))))).size) <= 96
