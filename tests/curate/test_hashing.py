"""Hashes against imagehash's definition, and the eight orientations against images really turned."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
from PIL import Image

from terrasieve import keyed
from terrasieve.curate import hashing


def thumbs(count: int) -> np.ndarray:
    return keyed.numpy_generator(0, "test_hashing").integers(0, 256, (count, 32, 32), dtype=np.uint8)


def test_phash_is_the_dct_above_its_median() -> None:
    found = hashing.hashes(thumbs(20)).phash[:, 0]
    for image, code in zip(thumbs(20), found, strict=True):
        low = scipy.fft.dct(scipy.fft.dct(image.astype(float), axis=0), axis=1)[:8, :8]
        bits = (low > np.median(low)).ravel()
        assert int("".join("01"[bit] for bit in bits.astype(int)), 2) == int(code)


def test_eight_orientations_are_those_of_turned_images() -> None:
    images = thumbs(50)
    found = hashing.hashes(images).phash
    for column, (quarters, mirrored) in enumerate(hashing.ORIENTATIONS):
        turned = np.rot90(images, quarters, (1, 2))
        turned = turned[:, :, ::-1] if mirrored else turned
        np.testing.assert_array_equal(hashing.hashes(np.ascontiguousarray(turned)).phash[:, 0], found[:, column])
    assert len(np.unique(found)) == found.size, "eight different hashes an image"


def test_dhash_follows_rising_brightness() -> None:
    ramp = np.broadcast_to(np.arange(32, dtype=np.uint8) * 8, (1, 32, 32))
    assert hashing.hashes(ramp).dhash[0] == 2**64 - 1
    assert hashing.hashes(ramp[:, :, ::-1]).dhash[0] == 0


def test_entropy_in_bits() -> None:
    even = (np.arange(1024) % 64 * 4).astype(np.uint8).reshape(1, 32, 32)
    flat = np.full((1, 32, 32), 7, np.uint8)
    half = np.where(np.arange(1024) % 2, 0, 200).astype(np.uint8).reshape(1, 32, 32)
    assert [hashing.hashes(image).entropy[0] for image in (even, flat, half)] == pytest.approx([6, 0, 1], abs=1e-6)


@pytest.mark.parametrize("shape", [(64, 64), (100, 70), (32, 32), (20, 33), (1, 1)])
def test_thumbnail_is_the_mean_of_what_each_value_covers(shape: tuple[int, int]) -> None:
    image = keyed.numpy_generator(1, "test_hashing").integers(0, 256, shape, dtype=np.uint8)
    # every pixel repeated 32 times a side: then each thumbnail value covers whole pixels
    fine = image.repeat(32, 0).repeat(32, 1).astype(float)
    exact = fine.reshape(32, shape[0], 32, shape[1]).mean(axis=(1, 3))
    assert np.abs(hashing.thumbnail(image) - exact).max() <= 0.501


def test_survives_recompression_and_resizing(shared_data) -> None:  # type: ignore[no-untyped-def]
    """CURATION.md: at least 99.5 % within 8 bits; here all of 60 real images."""
    paths = sorted((shared_data / "ucmerced" / "Images").rglob("*.jp*g"))[::35]
    grey = [Image.open(path).convert("L") for path in paths]
    half = [image.resize((128, 128), Image.Resampling.LANCZOS) for image in grey]
    one, other = (
        hashing.hashes(np.stack([hashing.thumbnail(np.asarray(i)) for i in images])).phash[:, 0]
        for images in (grey, half)
    )
    assert len(paths) == 60
    assert (np.bitwise_count(one ^ other) <= 8).all()
