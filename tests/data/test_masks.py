"""Masks from real files: which file, what its numbers mean, and what is wrong with those that are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from pydantic import ValidationError

from terrasieve import manifest
from terrasieve.curate.scan import scan
from terrasieve.data.images import Images, from_table
from terrasieve.data.masks import MaskSettings, find_masks
from terrasieve.errors import UserError
from terrasieve.imagery.earth import LAND_COVER
from terrasieve.imagery.earth.write import write_chips

TWO = {"replace": ("image.tif", "mask.tif"), "classes": ("ground", "house")}


def write(path: Path, array: np.ndarray, **how: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    planes = array if array.ndim == 3 else array[None]
    shape = {"count": len(planes), "height": planes.shape[1], "width": planes.shape[2], "dtype": str(planes.dtype)}
    with rasterio.open(path, "w", driver="GTiff", **shape, **how) as file:
        file.write(planes)


def images(folder: Path, windows: list[list[int]] | None = None) -> Images:
    table = scan([folder], pattern="*image.*", labels="none").table
    if windows is not None:
        (row,) = table.to_pylist()
        rows = [row | {"window": w, "width": w[2], "height": w[3], "id": str(w)} for w in windows]
        table = manifest.rows_to_table(rows)
    return from_table(table)


def sample(folder: Path, mask: np.ndarray, **how: Any) -> Images:
    write(folder / "a_image.tif", np.full((3, 6, 8), 7, np.uint8))
    write(folder / "a_mask.tif", mask, **how)
    return images(folder)


def checker(dtype: str = "uint8") -> np.ndarray:
    return (np.add.outer(np.arange(6), np.arange(8)) % 2).astype(dtype)


def test_reads_whole_and_crop(tmp_path: Path) -> None:
    masks = find_masks(sample(tmp_path, checker()), MaskSettings(**TWO))
    assert masks.classes == ("ground", "house") and len(masks) == 1
    assert masks.read(0).dtype == np.uint8 and np.array_equal(masks.read(0), checker())
    assert np.array_equal(masks.read(0, (3, 1, 4, 2)), checker()[1:3, 3:7])
    assert masks.count().tolist() == [24, 24]


@pytest.mark.parametrize(("dtype", "values", "ignore"), [("uint8", (40, 7), (0,)), ("int16", (-3, 900), (-9999,))])
def test_numbers_of_the_file_become_classes(tmp_path: Path, dtype: str, values: Any, ignore: Any) -> None:
    raw = np.array(values, dtype)[checker()]
    raw[0, :3] = ignore[0]
    expected = checker()
    expected[0, :3] = 255
    masks = find_masks(sample(tmp_path, raw), MaskSettings(**TWO, values=values, ignore=ignore))
    assert np.array_equal(masks.read(0), expected)
    assert masks.count().sum() == 45


def test_declared_no_data_is_ignored_unless_it_is_a_class(tmp_path: Path) -> None:
    raw = checker()
    raw[2] = 9
    masks = find_masks(sample(tmp_path / "nine", raw, nodata=9), MaskSettings(**TWO))
    assert (masks.read(0)[2] == 255).all() and np.array_equal(masks.read(0)[3:], raw[3:])
    masks = find_masks(sample(tmp_path / "zero", checker(), nodata=0), MaskSettings(**TWO))
    assert np.array_equal(masks.read(0), checker())


def test_windows_of_an_image_are_windows_of_its_mask(tmp_path: Path) -> None:
    sample(tmp_path, checker())
    masks = find_masks(images(tmp_path, [[0, 0, 4, 6], [4, 1, 4, 5]]), MaskSettings(**TWO))
    assert np.array_equal(masks.read(1), checker()[1:6, 4:8])
    assert np.array_equal(masks.read(1, (1, 2, 3, 2)), checker()[3:5, 5:8])
    assert np.array_equal(masks.take(np.array([1])).read(0), masks.read(1))


def test_the_last_occurrence_and_the_ending_are_replaced() -> None:
    settings = MaskSettings(replace=("images/", "masks/"), suffix=".tif", classes=("a", "b"))
    assert settings.uri_of("/images/images/town/x.y.jpg") == "/images/masks/town/x.y.tif"
    assert settings.uri_of("/d.s/images/x") == "/d.s/masks/x.tif"
    assert settings.uri_of("/elsewhere/x.tif") is None


@pytest.mark.parametrize("valid", [False, True], ids=["plain", "with no-data"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_number_out_of_range_names_file_and_value(tmp_path: Path, dtype: str, valid: bool) -> None:
    raw = checker(dtype)
    raw[5, 5:] = 17
    raw[0, 0] = 9
    masks = find_masks(sample(tmp_path, raw, **({"nodata": 9} if valid else {})), MaskSettings(**TWO))
    with pytest.raises(UserError, match=r"a_mask\.tif holds .*17 \(3 pixels\).*0 ground, 1 house; ignored: none"):
        masks.read(0)
    with pytest.raises(UserError, match="17"):
        masks.count()
    assert masks.read(0, (1, 0, 4, 4)).shape == (4, 4)  # the fault is not there


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a_mask\.tif has 6 x 6 pixels, its image .*a_image\.tif 8 x 6"):
        find_masks(sample(tmp_path, checker()[:, :6]), MaskSettings(**TWO))
    with pytest.raises(UserError, match="6 x 6 pixels"):
        find_masks(images(tmp_path, [[0, 0, 4, 4]]), MaskSettings(**TWO))


def test_missing_broken_and_coloured_masks_are_named(tmp_path: Path) -> None:
    found = sample(tmp_path, np.zeros((3, 6, 8), np.uint8))
    with pytest.raises(UserError, match=r"a_mask\.tif has 3 bands"):
        find_masks(found, MaskSettings(**TWO))
    (tmp_path / "a_mask.tif").write_bytes(b"II*\0 this is no TIFF")
    with pytest.raises(UserError, match=r"a_image\.tif has no usable mask: .*a_mask\.tif"):
        find_masks(found, MaskSettings(**TWO))
    (tmp_path / "a_mask.tif").unlink()
    with pytest.raises(UserError, match=r"no usable mask: .*a_mask\.tif: missing"):
        find_masks(found, MaskSettings(**TWO))
    with pytest.raises(UserError, match=r"'picture'.*a_image\.tif"):
        find_masks(found, MaskSettings(**TWO | {"replace": ("picture", "mask")}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"classes": ("one",)},
        {"classes": ("same", "same")},
        {"values": (1, 2, 3)},
        {"values": (4, 4)},
        {"ignore": (1,)},
        {"replace": ("", "x")},
    ],
    ids=str,
)
def test_settings_that_contradict_themselves(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong)) if "ignore" not in wrong else "in ignore"):
        MaskSettings(**TWO | wrong)


@pytest.mark.parametrize("kind", ["tif", "jpg"])
def test_the_procedural_earth(tmp_path: Path, kind: Any) -> None:
    rows = write_chips(tmp_path, 3, 0, size_px=48, masks=True, format=kind)
    found = from_table(manifest.rows_to_table(rows))
    masks = find_masks(found, MaskSettings(replace=("images/", "masks/"), suffix=".tif", classes=LAND_COVER))
    for row in range(3):
        with rasterio.open(Path(found.uris[row].replace("/images/", "/masks/")).with_suffix(".tif")) as file:
            assert np.array_equal(masks.read(row), file.read(1))


def test_flair_with_its_broken_crs_and_spacenet(shared_data: Path) -> None:
    table = scan([shared_data / "flair2_samples"], pattern="*aerial.tif", labels="none").table
    settings = {"replace": ("aerial.tif", "mask.tif"), "classes": tuple("abcdefghijklm")}
    masks = find_masks(from_table(table), MaskSettings(**settings, values=tuple(range(1, 14))))
    assert masks.count().tolist() == [137108, 149916, 122844, 98300, 242736, 137136, 47572, 307144, 0, 67964, 0, 0, 0]
    table = scan([shared_data / "spacenet7_samples"], pattern="*images.tif", labels="none").table
    settings = {"replace": ("images.tif", "mask.tif"), "classes": ("ground", "building")}
    assert find_masks(from_table(table), MaskSettings(**settings)).count()[1] == 2585 + 1591 + 32022 + 20080 + 1614
