"""The trainer's cache of patch scores: what training would compute, kept until the key changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scenes_by_class import write_scenes

from terrasieve import manifest
from terrasieve.data import images as imagery
from terrasieve.data.augment import ImageSettings, normalise
from terrasieve.data.samples import WholeSamples, collate
from terrasieve.errors import UserError
from terrasieve.evaluate import redundancy
from terrasieve.evaluate.redundancy import patch_scores
from terrasieve.methods.dropping import Dropping, DropSettings
from terrasieve.nn.encoder import Encoder, EncoderSettings
from terrasieve.nn.patches import patchify

MEAN, STD = (900.0, 1000.0, 1100.0, 1200.0), (300.0, 250.0, 400.0, 350.0)
IMAGE = ImageSettings(size_px=32, mean=MEAN, std=STD)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(EncoderSettings(name="vit_tiny_patch16_224", patch_px=8, depth=2), 4, (32, 32), seed=1).eval()


@pytest.mark.parametrize("of", ["pixels", "embeddings"])
@pytest.mark.parametrize("reduction", ["mean", "largest", "cover"])
def test_cached_patch_scores_are_what_training_would_compute(
    small_manifest: Path, tmp_path: Path, encoder: Encoder, of: str, reduction: str
) -> None:
    images = imagery.from_table(manifest.read(small_manifest))
    drop = DropSettings(policy="static", ratio=0.5, of=of, reduction=reduction)
    path, done = tmp_path / "scores.npy", []
    scores = patch_scores(
        images, IMAGE, drop, 8, encoder, path, "key", lambda n, total: done.append((n, total)), workers=0
    )
    batch = normalise(
        collate([WholeSamples(images, IMAGE)[row] for row in range(24)]), torch.tensor(MEAN), torch.tensor(STD)
    )
    with torch.no_grad():
        wanted = Dropping(drop, 16).scores(encoder, batch, patchify(batch.image, 8))
    assert (scores.shape, scores.dtype, done[-1]) == ((24, 16), np.float32, (24, 24))
    assert np.array_equal(scores, wanted.numpy())
    assert isinstance(scores, np.memmap) and not scores.flags.writeable


def test_cached_patch_scores_are_kept_until_the_key_changes(
    small_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = imagery.from_table(manifest.read(small_manifest))
    path = tmp_path / "scores.npy"

    def make(key: str, size: int = 32) -> np.ndarray:
        return patch_scores(
            images, IMAGE.model_copy(update={"size_px": size}), DropSettings(of="pixels"), 8, None, path, key, workers=0
        )

    first = np.array(make("a"))
    made = path.stat().st_ino
    assert np.array_equal(make("a"), first) and path.stat().st_ino == made
    assert np.array_equal(make("b"), first) and path.stat().st_ino != made
    assert make("b", size=16).shape == (24, 4)
    assert make("a").shape == (24, 16)
    content = path.read_bytes()
    path.write_bytes(content[:-70])  # cut: no longer its key
    assert np.array_equal(make("a"), first)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(redundancy, "over_images", stop)
    assert np.array_equal(make("a"), first)
    with pytest.raises(KeyboardInterrupt):
        make("c")
    assert path.read_bytes() == content  # nothing half done under its name


def test_cached_patch_scores_of_what_cannot_be_seen(tmp_path: Path) -> None:
    path = write_scenes(tmp_path, 3)
    images = imagery.from_table(manifest.read(path))
    Path(images.uris[1]).unlink()
    image = ImageSettings(size_px=32, mean=(128.0,) * 3, std=(40.0,) * 3)
    scores = patch_scores(images, image, DropSettings(of="pixels"), 8, None, tmp_path / "s.npy", "k", workers=1)
    assert np.isinf(scores).all(axis=1).tolist() == [False, True, False]
    with pytest.raises(UserError, match="needs an encoder"):
        patch_scores(images, image, DropSettings(), 8, None, tmp_path / "t.npy", "k", workers=0)
    for wrong, px, words in (
        (image, 12, "does not divide"),
        (image, 32, "two patches or more"),
        (ImageSettings(size_px=32), 8, "mean and standard"),
    ):
        with pytest.raises(UserError, match=words):
            patch_scores(images, wrong, DropSettings(of="pixels"), px, None, tmp_path / "t.npy", "k", workers=0)
    assert not (tmp_path / "t.npy").exists()
