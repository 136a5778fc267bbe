"""HOG energy against scikit-image, and what a selection may rely on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.feature import hog

from terrasieve.sieve.richness import hog_energy, hog_histogram


def skimage_histogram(image_HWC: np.ndarray, patch_px: int) -> np.ndarray:
    """Return scikit-image's histograms (rows, columns, 9); one block over all cells keeps their proportions."""
    cells = (image_HWC.shape[0] // patch_px, image_HWC.shape[1] // patch_px)
    block = hog(image_HWC, 9, (patch_px, patch_px), cells, block_norm="L2", channel_axis=-1, feature_vector=False)
    return np.asarray(block[0, 0])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 5]), st.sampled_from([4, 8, 16]))
def test_histograms_and_ranks_are_those_of_scikit_image(seed: int, bands: int, patch_px: int) -> None:
    draw = np.random.Generator(np.random.Philox(seed))
    image_HWC = draw.normal(size=(48, 64, bands)).cumsum(axis=0)  # no two gradients tie
    expected = skimage_histogram(image_HWC, patch_px)
    images_BCHW = torch.from_numpy(image_HWC).permute(2, 0, 1)[None]
    ours = hog_histogram(images_BCHW, patch_px)[0].numpy().reshape(expected.shape)
    assert np.abs(ours / np.linalg.norm(ours) - expected).max() < 1e-5
    energy = hog_energy(images_BCHW, patch_px)[0].numpy()
    assert np.array_equal(np.argsort(energy), np.argsort((expected**2).sum(-1).ravel()))


def test_real_imagery_ranks_as_scikit_image(shared_data) -> None:  # type: ignore[no-untyped-def]
    from terrasieve.imagery import raster

    for name in ("airplane/airplane00", "forest/forest07", "harbor/harbor31"):
        pixels = raster.read(str(shared_data / "ucmerced" / "Images" / f"{name}.jpg")).array.astype(np.float64)
        draw = np.random.Generator(np.random.Philox(7))
        pixels = pixels[:, :240, :240] + draw.uniform(0, 1e-3, (3, 240, 240))  # breaks ties between equal gradients
        expected = skimage_histogram(pixels.transpose(1, 2, 0), 16)
        energy = hog_energy(torch.from_numpy(pixels)[None], 16)[0].numpy()
        top = np.argsort(-(expected**2).sum(-1).ravel())[:50]
        assert set(top) == set(np.argsort(-energy)[:50])


def test_energy_tells_rich_from_flat_where_a_standardised_mean_cannot() -> None:
    image = torch.zeros(1, 1, 32, 32)
    image[..., :14, ::4] = 1.0  # stripes above, nothing below
    energy = hog_energy(image, 16)[0]
    assert energy[:2].min() > 0
    assert energy[3] == 0
    histogram = hog_histogram(image, 16)
    standardised = (histogram - histogram.mean(-1, keepdim=True)) / (histogram.std(-1, keepdim=True) + 1e-6)
    assert standardised.mean(-1).abs().max() < 1e-6  # the trap: the same for every patch


def test_batch_does_not_matter_and_patch_must_divide() -> None:
    images = torch.rand(5, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    assert torch.equal(hog_energy(images, 8)[2:3], hog_energy(images[2:3], 8))
    with pytest.raises(ValueError, match="7 px does not divide"):
        hog_energy(images, 7)
