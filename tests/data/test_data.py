"""Samples and loader: windows land where they should, types survive to the device, order is a function of keys."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin

from terrasieve import keyed, manifest
from terrasieve.curate.scan import scan
from terrasieve.data import images as imagery
from terrasieve.data.augment import AugmentSettings, ImageSettings, normalise, random_crop, resize, turn
from terrasieve.data.loader import LoaderSettings, StepSampler, train_batches, whole_batches
from terrasieve.data.samples import TrainSamples, WholeSamples, collate
from terrasieve.errors import UserError

STILL = AugmentSettings(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flips=False, turns=False)


def write(path: Path, array: np.ndarray, nodata: float | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {"count": array.shape[0], "height": array.shape[1], "width": array.shape[2], "dtype": array.dtype}
    where = {"crs": "EPSG:32633", "transform": from_origin(500000, 5000000, 10, 10)}
    with rasterio.open(path, "w", driver="GTiff", nodata=nodata, **shape, **where) as file:
        file.write(array)
    return path


def table_of(folder: Path) -> pa.Table:
    return scan(folder, labels="none").table


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "int16"])
def test_types_survive_until_the_device(tmp_path: Path, dtype: str) -> None:
    draw = np.random.Generator(np.random.Philox(1))
    for index in range(3):
        write(tmp_path / f"{index}.tif", draw.integers(0, 200, (5, 16, 16)).astype(dtype))
    images = imagery.from_table(table_of(tmp_path))
    batch = collate([TrainSamples(images, ImageSettings(size_px=16), 0)[(0, row)] for row in range(3)])
    expected = {"uint8": torch.uint8, "uint16": torch.uint16}.get(dtype, torch.float32)
    assert batch.image.dtype is expected
    ready = normalise(batch, torch.full((5,), 100.0), torch.full((5,), 50.0))
    assert ready.image.dtype is torch.float32
    assert torch.allclose(ready.image, (batch.image.float() - 100) / 50)


def test_a_window_of_a_scene_and_a_crop_of_it_show_the_right_ground(tmp_path: Path) -> None:
    """A cross planted at a known pixel is found in both."""
    scene = np.zeros((1, 300, 400), dtype=np.uint16)
    scene[0, 150, 220] = 9000
    path = write(tmp_path / "scene.tif", scene)
    row = {**table_of(tmp_path).to_pylist()[0], "window": [200, 100, 64, 64], "width": 64, "height": 64}
    images = imagery.from_table(manifest.rows_to_table([row]))
    whole = images.read(0).array
    assert whole.shape == (1, 64, 64)
    assert np.argwhere(whole[0] == 9000).tolist() == [[50, 20]]
    assert np.argwhere(images.read(0, (10, 45, 20, 15)).array[0] == 9000).tolist() == [[5, 10]]
    assert images.uris == [str(path)]


def test_pixels_without_data_become_zero_and_are_marked(tmp_path: Path) -> None:
    array = np.full((2, 16, 16), 500, dtype=np.float32)
    array[:, :, 8:] = -9999
    array[0, 0, 0] = np.nan
    write(tmp_path / "a.tif", array, nodata=-9999)
    write(tmp_path / "b.tif", np.full((2, 16, 16), 700, dtype=np.float32))
    images = imagery.from_table(table_of(tmp_path))
    settings = ImageSettings(size_px=16, augment=STILL)
    batch = collate([TrainSamples(images, settings, 0)[(0, row)] for row in range(2)])
    assert batch.valid is not None
    assert batch.valid[0, 1:, :8].all()
    assert not batch.valid[0, :, 8:].any()
    assert not batch.valid[0, 0, 0]
    assert batch.valid[1].all()
    ready = normalise(batch, torch.tensor([600.0, 600.0]), torch.tensor([100.0, 100.0]))
    assert ready.image.isfinite().all()
    assert (ready.image[0][:, ~batch.valid[0]] == 0).all()
    assert (ready.image[1] == 1).all()
    mean, std = imagery.band_statistics(images, seed=0)
    assert mean[1] == pytest.approx((500 * 128 + 700 * 256) / 384, abs=1)
    assert std[1] == pytest.approx(94.3, abs=1)


def test_bands_are_chosen_by_name_and_missing_ones_are_explained(tmp_path: Path) -> None:
    array = np.stack([np.full((16, 16), band, dtype=np.uint8) for band in (10, 20, 30, 40)])
    path = write(tmp_path / "a.tif", array)
    with rasterio.open(path, "r+") as file:
        for band, name in enumerate(("blue", "green", "red", "nir"), 1):
            file.set_band_description(band, name)
    write(tmp_path / "b.tif", array[:2])
    rows = table_of(tmp_path)
    picked = imagery.from_table(rows.slice(0, 1), ("nir", "red"))
    assert picked.read(0).array[:, 0, 0].tolist() == [40, 30]
    assert imagery.from_table(rows.slice(0, 1)).bands == ("blue", "green", "red", "nir")
    with pytest.raises(UserError, match=r"image\.bands: nir, red is not in every image .*1 row\(s\) have"):
        imagery.from_table(rows, ("nir", "red"))
    dropped = rows.set_column(rows.schema.get_field_index("keep"), "keep", pa.array([False, False]))
    with pytest.raises(UserError, match="keeps none of its 2 rows"):
        imagery.from_table(dropped)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 16), st.integers(0, 60))
def test_every_epoch_shows_every_image_once_and_a_resume_reads_on(count: int, batch_size: int, start: int) -> None:
    steps = -(-3 * count // batch_size)
    whole = list(StepSampler(count, 7, range(steps), (0, batch_size), batch_size))
    stream = [key for keys in whole for key in keys]
    for epoch in range(3):
        assert sorted(index for e, index in stream if e == epoch)[:count] == list(range(count))
    start = min(start, steps)
    assert list(StepSampler(count, 7, range(start, steps), (0, batch_size), batch_size)) == whole[start:]
    if batch_size % 2 == 0:
        halves = [
            list(StepSampler(count, 7, range(steps), (r, r + batch_size // 2), batch_size))
            for r in (0, batch_size // 2)
        ]
        assert [a + b for a, b in zip(*halves, strict=True)] == whole


def test_batches_do_not_depend_on_workers_or_processes(small_manifest: Path) -> None:
    images = imagery.from_table(manifest.read(small_manifest))
    image = ImageSettings(size_px=24)

    def batches(workers: int, rank: int = 0, world: int = 1, start: int = 0) -> list[torch.Tensor]:
        how = {"seed": 3, "steps": range(start, 4), "batch_size": 8, "rank": rank, "world": world}
        return [b.image for b in train_batches(images, image, LoaderSettings(workers=workers), **how)]  # type: ignore[arg-type]

    alone = batches(0)
    assert all(torch.equal(a, b) for a, b in zip(alone, batches(2), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(alone[2:], batches(1, start=2), strict=True))
    for whole, first, second in zip(alone, batches(0, 0, 2), batches(0, 1, 2), strict=True):
        assert np.array_equal(whole.numpy(), np.concatenate([first.numpy(), second.numpy()]))
    assert not torch.equal(alone[0], alone[3]), "another epoch, another crop"


def test_whole_images_come_in_row_order_without_augmentation(small_manifest: Path) -> None:
    images = imagery.from_table(manifest.read(small_manifest))
    batches = list(whole_batches(images, ImageSettings(size_px=40), LoaderSettings(workers=2), 7))
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(24))
    assert np.array_equal(batches[0].image[3].numpy(), images.read(3).array)
    assert batches[0].lon.isfinite().all()
    assert WholeSamples(images, ImageSettings(size_px=8))[0]["image"].shape == (4, 8, 8)


@given(st.integers(0, 2**31), st.integers(1, 500), st.integers(1, 500))
def test_crops_lie_inside_and_keep_to_their_area(seed: int, width: int, height: int) -> None:
    draw = keyed.numpy_generator(seed, "test")
    x, y, w, h = random_crop(draw, width, height, AugmentSettings())
    assert 0 <= x <= x + w <= width
    assert 0 <= y <= y + h <= height
    if (w, h) != (width, height) and min(width, height) > 50:
        assert 0.17 < w * h / (width * height) <= 1.03


def test_turns_are_numpys_and_resampling_keeps_type_and_mean() -> None:
    image = torch.randint(0, 60000, (3, 12, 12), generator=keyed.generator(0, "test")).to(torch.uint16)
    turned = turn(image, True, False, 3)
    assert np.array_equal(turned.numpy(), np.rot90(image.numpy()[:, :, ::-1], 3, (-2, -1)))
    for dtype in (torch.uint8, torch.uint16, torch.float32):
        flat = torch.full((2, 30, 20), 200).to(dtype)
        small = resize(flat, 7, 9)
        assert small.dtype is dtype
        assert small.shape == (2, 7, 9)
        assert (small.float() - 200).abs().max() < 0.01


@pytest.mark.slow
def test_a_process_that_leaves_its_loader_open_ends(small_manifest: Path) -> None:
    """Workers leave SIGTERM to their parent; a parent that crashes must not wait for them for ever."""
    code = (
        "import sys\n"
        "from terrasieve import manifest\n"
        "from terrasieve.data.augment import ImageSettings\n"
        "from terrasieve.data.images import from_table\n"
        "from terrasieve.data.loader import LoaderSettings, train_batches\n"
        "images = from_table(manifest.read(sys.argv[1]))\n"
        "how = {'seed': 0, 'steps': range(100), 'batch_size': 4}\n"
        "batches = train_batches(images, ImageSettings(size_px=16), LoaderSettings(workers=1), **how)\n"
        "next(batches)\n"
        "sys.modules['kept'] = batches\n"
        "raise RuntimeError('crash')\n"
    )
    command = [sys.executable, "-c", code, str(small_manifest)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "RuntimeError: crash" in done.stderr
