"""Groups: crops where the coordinates say, windows near each other, the same bits whoever makes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin

from terrasieve import keyed, manifest
from terrasieve.curate.scan import scan
from terrasieve.data import survey
from terrasieve.data.augment import AugmentSettings, ImageSettings
from terrasieve.data.groups import Groups, ground, place_windows, turned
from terrasieve.data.images import from_table
from terrasieve.data.loader import LoaderSettings, train_batches
from terrasieve.data.pairs import KINDS, PairSettings
from terrasieve.data.samples import TrainSamples, collate
from terrasieve.methods.visibility import cross_project
from terrasieve.recipe import Recipe

CROSS = (500_815.0, 6_099_215.0)  # metres east and north, in the middle of a pixel of every file


def scene(path: Path, left: float, top: float, gsd_m: float = 10.0, side_px: int = 160) -> None:
    """Write a dark scene with a bright cross of 5 x 5 pixels of 10 m at CROSS."""
    pixels = np.full((1, side_px, side_px), 10, np.uint8)
    edge_x = left + gsd_m * np.arange(side_px) + gsd_m / 2
    edge_y = top - gsd_m * np.arange(side_px) - gsd_m / 2
    near_x, near_y = np.abs(edge_x - CROSS[0]), np.abs(edge_y - CROSS[1])
    arm = (near_x[None] < 5) & (near_y[:, None] < 25) | (near_x[None] < 25) & (near_y[:, None] < 5)
    pixels[0, arm] = 250
    how = {"driver": "GTiff", "width": side_px, "height": side_px, "count": 1, "dtype": "uint8", "crs": "EPSG:32721"}
    with rasterio.open(path, "w", **how, transform=from_origin(left, top, gsd_m, gsd_m)) as file:
        file.write(pixels)


def centre(image_HW: torch.Tensor) -> tuple[float, float] | None:
    """Where the cross is, in pixels from the left and top; None if it is not whole."""
    bright = (image_HW.float() - 10).clamp(min=0)
    if bright.sum() < 1 or bright[[0, 1, -2, -1]].any() or bright[:, [0, 1, -2, -1]].any():
        return None
    rows, columns = (torch.arange(n) + 0.5 for n in bright.shape)
    return float((bright.sum(0) * columns).sum() / bright.sum()), float((bright.sum(1) * rows).sum() / bright.sum())


def test_a_cross_at_a_known_coordinate_is_in_both_crops_where_the_boxes_say(tmp_path: Path) -> None:
    scene(tmp_path / "a.tif", 500_000, 6_100_000)
    scene(tmp_path / "b.tif", 500_130, 6_099_930)
    scene(tmp_path / "c.tif", 500_070, 6_100_010, gsd_m=20.0, side_px=80)
    table = scan(tmp_path, labels="none").table
    images, image = from_table(table), ImageSettings(size_px=64)
    for window in (2.0, None):
        groups = Groups.of(table, PairSettings(window=window, kinds=("overlap",)), 2, 0)
        samples = TrainSamples(images, image, 0, groups=groups)
        found = 0
        for epoch in range(60):
            sample = samples[epoch, epoch % 3]
            batch = collate([sample])
            assert batch.neighbours is not None and batch.boxes is not None and batch.kinds is not None
            assert KINDS[int(batch.kinds)] == "overlap"
            pair = torch.cat([batch.image[:, None], batch.neighbours], dim=1).float()
            there = [centre(pair[0, k, 0]) for k in (0, 1)]
            if there[0] is None or there[1] is None:
                continue
            found += 1
            left, top, right, bottom = batch.boxes[0].double().unbind(-1)
            metres = [
                (left[k] + there[k][0] / 64 * (right[k] - left[k]), top[k] - there[k][1] / 64 * (top[k] - bottom[k]))
                for k in (0, 1)
            ]
            pixel_m = float(max((right - left).max(), (top - bottom).max()) / 64)
            assert abs(float(metres[0][0] - metres[1][0])) < 0.5 * max(pixel_m, 10)
            assert abs(float(metres[0][1] - metres[1][1])) < 0.5 * max(pixel_m, 10)
            warped, _ = cross_project(pair, torch.ones(1, 2, 64, 64), batch.boxes)
            seen = centre(warped[0, 0, 0].clamp(min=10))
            if seen is not None:
                assert np.hypot(seen[0] - there[0][0], seen[1] - there[0][1]) < 1
        assert found > 10


def test_boxes_are_the_crops_ground_to_the_pixel(tmp_path: Path) -> None:
    """Without flips and turns, and unscaled: the cross stands in the crop where the box in UTM metres puts it."""
    scene(tmp_path / "a.tif", 500_000, 6_100_000)
    scene(tmp_path / "b.tif", 500_130, 6_099_930)
    table = scan(tmp_path, labels="none").table
    images, groups = from_table(table), Groups.of(table, PairSettings(), 2, 0)
    image, found = ImageSettings(size_px=64), 0
    for epoch in range(30):
        group = groups.cut(keyed.numpy_generator(0, "augment", epoch, 0), 0, epoch, images.windows, image)
        for row, crop, box in zip(group.rows, group.crops, group.boxes_K4, strict=True):
            pixels = images.read(row, crop).array[0]
            assert box[2] - box[0] == pytest.approx(10 * crop[2], abs=1e-3)
            place = centre(torch.from_numpy(pixels.copy()))
            if place is not None:
                found += 1
                assert box[0] + 10 * place[0] == pytest.approx(CROSS[0], abs=1e-2)
                assert box[1] - 10 * place[1] == pytest.approx(CROSS[1], abs=1e-2)
    assert found > 10


def test_windows_lie_inside_and_near_each_other() -> None:
    scenes = np.array([[0, 10_000, 10_000, 0], [8_000, 9_000, 18_000, -1_000], [30_000, 10_000, 40_000, 0.0]])
    sizes = np.array([[1000.0, 1000.0], [500.0, 500.0], [1000.0, 1000.0]])
    for n in range(200):
        draw = keyed.numpy_generator(n, "test")
        windows = place_windows(draw, scenes[:2], sizes[:2], np.array([100.0, 100.0]), 0.5)
        assert [window[2:] for window in windows] == [(100, 100), (50, 50)]
        boxes = ground(scenes[:2], sizes[:2], np.array(windows, float))
        assert (boxes[:, :1] >= scenes[:2, :1]).all() and (boxes[:, 2:3] <= scenes[:2, 2:3]).all()
        assert np.abs(boxes[0, :2] - boxes[1, :2]).max() <= 500 + 20
        apart = place_windows(draw, scenes[[0, 2]], sizes[[0, 2]], np.array([100.0, 100.0]), 0.5)
        assert apart[0][0] == 900 and apart[1][0] == 0, "of scenes that do not meet, the edges that face each other"
        assert abs(apart[0][1] - apart[1][1]) <= 51
    assert len({place_windows(keyed.numpy_generator(n, "t"), scenes[:2], sizes[:2], np.array([100.0, 100.0]), 0.5)[0][0]
                for n in range(200)}) > 60, "anywhere in what they share"  # fmt: skip
    whole = place_windows(keyed.numpy_generator(0, "t"), scenes[:2], sizes[:2], np.array([np.inf, np.inf]), 0.5)
    assert whole == [(0, 0, 1000, 1000), (0, 0, 500, 500)]


def test_the_frame_turns_with_the_pixels() -> None:
    """A point of an image stays at its place in the box through every mirror and turn."""
    pixels = torch.zeros(6, 6)
    pixels[1, 4] = 1
    boxes = np.array([[0.0, 6.0, 6.0, 0.0], [4.0, 12.0, 10.0, 6.0]])
    from terrasieve.data.augment import turn

    x, y = 4.5, 4.5  # of the point in the first box; the second box's lower left corner is at (4, 6)
    for mirror_x, mirror_y, quarters in np.ndindex(2, 2, 4):
        left, top, _, _ = turned(boxes, bool(mirror_x), bool(mirror_y), quarters)[0].tolist()
        row, column = divmod(int(turn(pixels, bool(mirror_x), bool(mirror_y), quarters).argmax()), 6)
        # the second box's centre, seen from the point, must have turned in the same way
        other = turned(boxes, bool(mirror_x), bool(mirror_y), quarters)[1].tolist()
        to_other = np.array(
            [(other[0] + other[2]) / 2 - left - column - 0.5, (other[1] + other[3]) / 2 - top + row + 0.5]
        )
        expected = np.array([7 - x, 9 - y])
        expected = expected * [1 - 2 * mirror_x, 1 - 2 * mirror_y]
        for _ in range(quarters):
            expected = np.array([-expected[1], expected[0]])
        assert to_other == pytest.approx(expected, abs=1e-5)


def test_three_images_no_one_twice_and_bits_do_not_depend_on_workers(small_manifest: Path) -> None:
    table = manifest.read(small_manifest)
    images, image = from_table(table), ImageSettings(size_px=16)
    groups = Groups.of(table, PairSettings(kinds=("near",), max_km=1e4), 3, 0)
    for row in range(6):
        rows = groups.cut(keyed.numpy_generator(0, "a"), row, 0, images.windows, image).rows
        assert rows[0] == row and len(set(rows)) == 3
    how = {"seed": 0, "steps": range(3), "batch_size": 8, "groups": groups}

    def batches(workers: int, **more: int) -> list:  # type: ignore[type-arg]
        return list(train_batches(images, image, LoaderSettings(workers=workers), **how, **more))  # type: ignore[arg-type]

    here, there = batches(0), batches(2)
    for a, b in zip(here, there, strict=True):
        assert a.neighbours.shape == (8, 2, 4, 16, 16) and a.boxes.shape == (8, 3, 4) and a.kinds.shape == (8, 2)
        assert torch.equal(a.neighbours, b.neighbours) and torch.equal(a.boxes, b.boxes) and a.overlap == b.overlap
    halves = [batches(0, rank=rank, world=2) for rank in (0, 1)]
    for step, whole in enumerate(here):
        assert torch.equal(whole.neighbours, torch.cat([half[step].neighbours for half in halves]))
        assert whole.overlap == halves[0][step].overlap + halves[1][step].overlap
        assert whole.part(2, 5).overlap == whole.overlap[2:5]


def test_an_image_alone_is_cropped_twice_and_one_without_a_place_has_a_box(tmp_path: Path) -> None:
    scene(tmp_path / "a.tif", 500_000, 6_100_000)
    table = scan(tmp_path, labels="none").table
    images, groups = from_table(table), Groups.of(table, PairSettings(), 2, 0)
    image = ImageSettings(size_px=32, augment=AugmentSettings(crop_scale=(0.2, 0.9)))
    group = groups.cut(keyed.numpy_generator(0, "x"), 0, 0, images.windows, image)
    assert group.rows == [0, 0] and group.kinds == ["alone"] and group.crops[0] != group.crops[1] and group.overlap > 0
    assert (
        "none of 1 images looked at has a neighbour" in survey.notes(survey.take(groups, images.windows, image, 0))[0]
    )
    rows = [{"uri": f"/a/{i}.jpg", "width": 40 + 20 * i, "height": 30, "keep": True} for i in range(2)]
    lost = Groups.of(manifest.rows_to_table(rows), PairSettings(window=None), 2, 0)
    whole = ImageSettings(size_px=32, augment=AugmentSettings(crop_scale=(1, 1), crop_ratio=(1, 3)))
    sizes = np.array([[0, 0, 40, 30], [0, 0, 60, 30]])
    group = lost.cut(keyed.numpy_generator(0, "x"), 0, 0, sizes, whole)
    assert group.kinds == ["site"] and group.overlap > 0.5
    assert group.boxes_K4.max() == pytest.approx(400, rel=0.2)  # as if its pixels were of 10 m


def test_survey_counts_and_tells(small_manifest: Path) -> None:
    table = manifest.read(small_manifest)
    images = from_table(table)
    groups = Groups.of(table, PairSettings(kinds=("near",), max_km=1e4), 2, 0)
    found = survey.take(groups, images.windows, ImageSettings(size_px=16), 0)
    assert found["sample"] == found["images"] == len(images) and found["kinds"] == {"near": len(images)}
    for pair in found["pairs"]:
        for west, north, east, south in pair["boxes"]:
            assert west < east and south < north
    centre = np.mean([pair["boxes"][0] for pair in found["pairs"]], axis=0)
    assert centre[0] == pytest.approx(np.nanmean(images.lon), abs=0.5) and centre[1] == pytest.approx(
        np.nanmean(images.lat), abs=0.5
    )
    first = survey.notes(found | {"doubts": {"no place": 3}, "examples": {"no place": ["a.tif"]}})
    assert "near 100%" in first[0] and first[1].endswith("have no place, e.g. a.tif")


def test_recipe_has_pairs(tiny: Callable[..., Recipe]) -> None:
    assert tiny(pairs={"window": None, "kinds": ["near"]}).pairs.kinds == ("near",)
