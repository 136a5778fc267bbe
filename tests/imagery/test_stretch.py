"""Stretch and preview: any image becomes a picture, equal numbers equal colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from terrasieve.imagery import preview as previews
from terrasieve.imagery.preview import preview
from terrasieve.imagery.stretch import display_bands, limits, stretched, to_bytes
from terrasieve.imagery.unreadable import UnreadableImage


def draw(*shape: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(shape or 0))


def write_tiff(path: Path, array: np.ndarray, **more: object) -> str:
    C, H, W = array.shape
    with rasterio.open(path, "w", driver="GTiff", width=W, height=H, count=C, dtype=array.dtype, **more) as file:
        file.write(array)
    return str(path)


def test_limits_are_quantiles_of_all_real_values() -> None:
    a, b = (draw(n).integers(0, 5000, (3, 20, 30)).astype(np.uint16) for n in (1, 2))
    valid = np.ones((20, 30), np.bool_)
    valid[:7] = False
    found = limits([a, b], [valid, None], tail=0.1)
    for band in range(3):
        real = np.concatenate([a[band][valid], b[band].ravel()]).astype(float)
        assert np.allclose([found.low_3[band], found.high_3[band]], np.quantile(real, [0.1, 0.9]), atol=0.01)


def test_uint8_keeps_its_hues_and_what_is_flat_does_not_divide_by_zero() -> None:
    image = np.stack([np.full((8, 8), value, np.uint8) for value in (10, 100, 200)])
    found = limits([image], [None])
    assert found.low_3.tolist() == [10] * 3 and found.high_3.tolist() == [200] * 3
    assert stretched(image, None, found)[0, 0].tolist() == pytest.approx([0, 90 / 190, 1])
    flat = np.full((3, 4, 4), 7.5, np.float32)
    assert np.isfinite(stretched(flat, None, limits([flat], [None]))).all()
    nothing = limits([flat], [np.zeros((4, 4), np.bool_)])
    assert (stretched(flat, np.zeros((4, 4), np.bool_), nothing, no_data=0.25) == 0.25).all()


def test_not_finite_is_drawn_as_no_data() -> None:
    image = draw(3).normal(size=(3, 9, 9)).astype(np.float32)
    image[:, 0, 0], image[1, 2, 2] = np.nan, np.inf
    shown = stretched(image, None, limits([image], [None]))
    assert shown[0, 0].tolist() == [0.5] * 3 and shown[2, 2, 1] == 0.5 and np.isfinite(shown).all()
    assert to_bytes(shown).dtype == np.uint8


def test_bands_to_display() -> None:
    assert display_bands(("blue", "green", "red", "nir")) == [2, 1, 0]
    assert display_bands(("vv", "vh")) == [0, 0, 0] and display_bands(("a", "b", "c", "d")) == [0, 1, 2]


def test_averages_over_squares_leave_no_data_out(tmp_path: Path) -> None:
    array = draw(4).integers(1, 4000, (4, 50, 70)).astype(np.uint16)
    array[:, :13, :22] = 0
    uri = write_tiff(tmp_path / "a.tif", array, nodata=0)
    seen = preview(uri, None, ("blue", "green", "red", "nir"), longest_px=25)
    assert seen.bands == ("red", "green", "blue") and seen.rgb_3HW.shape == (3, 16, 23)
    assert seen.rgb_3HW.dtype == np.uint16 and seen.valid_HW is not None
    for y in range(16):
        for x in range(23):
            square = array[[2, 1, 0], 3 * y : 3 * y + 3, 3 * x : 3 * x + 3].reshape(3, 9).astype(float)
            real = square[:, square.any(axis=0)]
            assert seen.valid_HW[y, x] == (real.size > 0)
            if real.size:
                assert np.abs(seen.rgb_3HW[:, y, x] - real.mean(axis=1)).max() <= 0.51


def test_a_large_raster_is_read_every_so_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.arange(600 * 400, dtype=np.float32).reshape(1, 600, 400)
    array[0, :100] = -1
    uri = write_tiff(tmp_path / "a.tif", array, nodata=-1)
    monkeypatch.setattr(previews, "_WHOLE_PX", 1000)
    seen = preview(uri, (0, 0, 400, 600), ("sar",), longest_px=100)
    assert seen.rgb_3HW.shape == (3, 100, 66) and seen.valid_HW is not None
    assert not seen.valid_HW[:16].any() and seen.valid_HW[18:].all()
    steps = np.diff(seen.rgb_3HW[0, 20:].astype(float), axis=0)
    assert np.allclose(steps, 6 * 400, atol=400)


def test_complex_and_thin_images(tmp_path: Path) -> None:
    array = (draw(5).normal(size=(1, 30, 30)) + 1j).astype(np.complex64)
    seen = preview(write_tiff(tmp_path / "c.tif", array))
    assert np.allclose(seen.rgb_3HW[0], np.abs(array[0])) and seen.rgb_3HW.dtype == np.float32
    thin = draw(6).integers(0, 255, (1, 2, 900)).astype(np.uint8)
    assert preview(write_tiff(tmp_path / "t.tif", thin), longest_px=100).rgb_3HW.shape == (3, 1, 100)


def test_windows_of_a_jpeg_and_what_cannot_be_read(tmp_path: Path) -> None:
    Image.fromarray(draw(7).integers(0, 255, (60, 80, 3)).astype(np.uint8)).save(tmp_path / "a.jpg")
    whole = preview(str(tmp_path / "a.jpg"))
    part = preview(str(tmp_path / "a.jpg"), (10, 20, 30, 25), ("red", "green", "blue"))
    assert np.array_equal(part.rgb_3HW, whole.rgb_3HW[:, 20:45, 10:40])
    with pytest.raises(UnreadableImage, match="missing"):
        preview(str(tmp_path / "none.tif"))
