"""Redundancy of an image: the scores against naive loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.measure import shannon_entropy

from terrasieve.batch import Batch
from terrasieve.evaluate.redundancy import SCORES, RedundancySettings, image_scores
from terrasieve.sieve.richness import hog_energy

PATCH = 4


def batch_of(count: int = 3, side: int = 24) -> Batch:
    """Normalised images; the second lacks data on the left, the third has twelve equal patches."""
    draw = np.random.Generator(np.random.Philox(5))
    image = torch.from_numpy(draw.normal(0.3, 1, (count, 3, side, side)).astype(np.float32))
    image[2, :, :8] = image[2, :, :4, :4].repeat(1, 2, 6)
    valid = torch.ones(count, side, side, dtype=torch.bool)
    valid[1, :, :10] = False  # two columns of patches, and half of the third
    nothing = torch.full((count,), math.nan, dtype=torch.float64)
    image = torch.where(valid[:, None], image, 0.0)
    return Batch(image, nothing, nothing, nothing, torch.arange(count), valid=valid)


def naive_scores(image: np.ndarray, valid: np.ndarray, threshold: float) -> dict[str, float]:
    side = image.shape[1] // PATCH
    cells = [
        (slice(PATCH * y, PATCH * y + PATCH), slice(PATCH * x, PATCH * x + PATCH))
        for y in range(side)
        for x in range(side)
    ]
    real = [n for n, cell in enumerate(cells) if valid[cell].any()]
    tokens = [image[:, cells[n][0], cells[n][1]].ravel().astype(np.float64) for n in real]
    units = [token / np.linalg.norm(token) for token in tokens]
    cosine = [[float(a @ b) for b in units] for a in units]
    others = [[c for j, c in enumerate(row) if j != i] for i, row in enumerate(cosine)]
    means = [sum(row) / len(row) for row in others]
    kept = [min(range(len(units)), key=lambda i: means[i])]
    while True:
        near = [max(cosine[i][j] for j in kept) for i in range(len(units))]
        left = [i for i in range(len(units)) if i not in kept and near[i] < threshold]
        if not left:
            break
        kept.append(min(left, key=lambda i: near[i]))
    hog = hog_energy(torch.from_numpy(image)[None], PATCH)[0].numpy().astype(np.float64)[real]
    quarter = len(real) / 4
    richest, held = sorted(hog, reverse=True), 0.0
    for n, energy in enumerate(richest):
        held += energy * min(max(quarter - n, 0), 1)
    grey = np.clip(np.floor((image.mean(axis=0)[valid] / 3 + 1) * 128), 0, 255)
    singular = np.linalg.svd(np.array(tokens), compute_uv=False)
    share = singular[singular > 1e-9 * singular[0]] / singular.sum()
    return {
        "real_patches": len(real),
        "cosine_mean": float(np.mean(means)),
        "cosine_largest": float(np.mean([max(row) for row in others])),
        "cover_kept": len(kept) / len(units),
        "hog_energy": float(hog.mean()),
        "hog_share": float(held / hog.sum()),
        "entropy_bits": float(shannon_entropy(grey, base=2)),
        "effective_rank": float(np.exp(-(share * np.log(share)).sum())),
    }


@pytest.mark.parametrize("threshold", [0.2, 0.9])
def test_scores_of_images_are_those_of_naive_loops(threshold: float) -> None:
    batch = batch_of()
    found = image_scores(batch, RedundancySettings(patch_px=PATCH, threshold=threshold))
    assert found["real_patches"].tolist() == [36, 24, 36]
    assert batch.valid is not None
    for n in range(3):
        wanted = naive_scores(batch.image[n].numpy(), batch.valid[n].numpy(), threshold)
        for name, value in wanted.items():
            assert found[name][n].item() == pytest.approx(value, rel=2e-5, abs=2e-5), (name, n)
    assert found["cover_kept"][2] <= 25 / 36  # twelve equal patches: one stands for all


def test_flat_images_and_images_without_data() -> None:
    batch = batch_of()
    flat = torch.ones(3, 3, 24, 24)
    assert batch.valid is not None
    batch.valid[0] = False
    batch.valid[1] = False
    batch.valid[1, :4, :4] = True  # one patch is left, which has nothing to be compared with
    found = image_scores(
        Batch(flat, batch.lon, batch.lat, batch.time, batch.index, valid=batch.valid), RedundancySettings(patch_px=4)
    )
    assert found["real_patches"].tolist() == [0, 1, 36]
    for name in SCORES:
        assert found[name][:2].isnan().all()
    same = {
        "cosine_mean": 1,
        "cosine_largest": 1,
        "cover_kept": 1 / 36,
        "hog_energy": 0,
        "hog_share": 0.25,
        "entropy_bits": 0,
        "effective_rank": 1,
    }
    for name, value in same.items():
        assert found[name][2].item() == pytest.approx(value, abs=1e-5), name
