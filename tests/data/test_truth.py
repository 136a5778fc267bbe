"""Truth follows its pixels through crops, mirrors and turns; mixing keeps pairs, shares and labels consistent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from terrasieve import keyed, manifest
from terrasieve.batch import Batch, Rows
from terrasieve.curate.scan import scan
from terrasieve.data import images as imagery
from terrasieve.data.augment import AugmentSettings, ImageSettings, normalise
from terrasieve.data.images import Images
from terrasieve.data.loader import LoaderSettings, train_batches, whole_batches
from terrasieve.data.masks import MaskSettings, find_masks
from terrasieve.data.mix import Mix
from terrasieve.data.samples import TrainSamples, collate
from terrasieve.data.truth import Truth
from terrasieve.errors import UserError

TURNED = AugmentSettings(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
SIDE = 16


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Images, MaskSettings]:
    """Six images whose pixels are ten times their mask's class, so that each tells where the other should be."""
    import rasterio

    root = tmp_path_factory.mktemp("masked")
    draw = np.random.Generator(np.random.Philox(5))
    for index in range(6):
        mask = draw.integers(0, 4, (1, SIDE, SIDE)).astype(np.uint8)
        for name, array in (("image", mask * 10), ("mask", mask)):
            path = root / f"{name}s" / f"{index}.tif"
            path.parent.mkdir(exist_ok=True)
            with rasterio.open(
                path, "w", driver="GTiff", width=SIDE, height=SIDE, count=1, dtype="uint8"
            ) as file:  # fmt: skip
                file.write(array)
    images = imagery.from_table(scan(root / "images", labels="none").table)
    return images, MaskSettings(replace=("images/", "masks/"), classes=("a", "b", "c", "d"))


def test_mask_and_redundancy_are_mirrored_and_turned_with_their_image(masked: tuple[Images, MaskSettings]) -> None:
    images, settings = masked
    patch = 4
    whole = torch.stack([torch.from_numpy(images.read(row).array[0].copy()) for row in range(6)])
    corners = whole[:, ::patch, ::patch].float()  # each patch's own number: its first pixel
    truth = Truth(masks=find_masks(images, settings), redundancy=corners.numpy())
    samples = TrainSamples(images, ImageSettings(size_px=SIDE, augment=TURNED), 0, truth)
    seen = set()
    for epoch in range(8):
        batch = collate([samples[epoch, row] for row in range(6)])
        assert batch.mask is not None and batch.mask.dtype is torch.uint8
        assert torch.equal(batch.image[:, 0], batch.mask * 10)
        assert batch.redundancy is not None
        for row, scores in enumerate(batch.redundancy.view(6, 4, 4)):
            patches = batch.image[row, 0].float().unfold(0, patch, patch).unfold(1, patch, patch)
            ends = [patches[..., y, x] for y in (0, -1) for x in (0, -1)]  # a patch's first pixel is now in one corner
            assert any(torch.equal(scores, corner) for corner in ends)
            seen.add(next(i for i, corner in enumerate(ends) if torch.equal(scores, corner)))
    assert len(seen) == 4, "mirrored and turned in every way"
    ready = normalise(batch, torch.tensor([0.0]), torch.tensor([1.0]))
    assert ready.mask is not None and ready.mask.dtype is torch.int64


def test_a_mask_is_cropped_where_its_image_is_and_keeps_its_numbers(masked: tuple[Images, MaskSettings]) -> None:
    images, settings = masked
    truth = Truth(masks=find_masks(images, settings))
    crop = (3, 5, 8, 6)
    direct = truth.read_mask(2, crop, 6, 8)
    assert direct is not None
    assert np.array_equal(direct.numpy() * 10, images.read(2, crop).array[0])
    enlarged = truth.read_mask(2, crop, 12, 16)
    assert enlarged is not None
    assert torch.equal(enlarged, direct.repeat_interleave(2, 0).repeat_interleave(2, 1))
    samples = TrainSamples(images, ImageSettings(size_px=32), 0, truth)
    for row in range(6):
        mask = samples[0, row]["mask"]
        assert mask.shape == (32, 32) and set(mask.unique().tolist()) <= {0, 1, 2, 3}
        near = (F.interpolate(samples[0, row]["image"][None].float(), size=(32, 32))[0, 0] / 10 - mask).abs()
        assert near.median() < 0.5, "the classes lie where the pixels do"


def test_labels_travel_with_their_image_through_any_loader(small_manifest: Path) -> None:
    images = imagery.from_table(manifest.read(small_manifest))
    labels = torch.tensor([["smooth", "rough"].index(Path(uri).parent.name) for uri in images.uris])
    for workers in (0, 2):
        how = {"seed": 1, "steps": range(3), "batch_size": 8, "truth": Truth(labels=labels)}
        for batch in train_batches(images, ImageSettings(size_px=16), LoaderSettings(workers=workers), **how):  # type: ignore[arg-type]
            assert torch.equal(batch.label, labels[batch.index])  # type: ignore[arg-type]
    rows = [5, 2, 9, 9]
    multi = F.one_hot(labels).float()
    (batch,) = whole_batches(
        images, ImageSettings(size_px=16), LoaderSettings(workers=0), truth=Truth(labels=multi), rows=rows
    )
    assert batch.index.tolist() == rows and torch.equal(batch.label, multi[rows])  # type: ignore[arg-type]
    taken = images.take(np.array(rows))
    assert taken.uris == [images.uris[row] for row in rows]
    assert np.array_equal(taken.read(1).array, images.read(2).array)


def test_a_number_out_of_range_in_a_worker_is_one_plain_message(masked: tuple[Images, MaskSettings]) -> None:
    images, settings = masked
    fewer = settings.model_copy(update={"classes": ("a", "b", "c")})
    truth = Truth(masks=find_masks(images, fewer))
    with pytest.raises(UserError) as caught:
        list(whole_batches(images, ImageSettings(size_px=SIDE), LoaderSettings(workers=1), truth=truth))
    assert str(caught.value).startswith("The mask /")
    assert "Traceback" not in str(caught.value)


def batch_of(count: int = 8, label: torch.Tensor | None = None) -> Batch:
    nowhere = torch.full((count,), torch.nan, dtype=torch.float64)
    image = torch.randn(count, 3, 12, 20, generator=keyed.generator(0, "test"))
    label = torch.arange(count) % 5 if label is None else label
    return Batch(image, nowhere, nowhere, nowhere, torch.arange(count), label=label, rows=Rows(0, count))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixing_is_what_a_loop_over_pairs_computes(mixup: float, cutmix: float) -> None:
    batch, mix = batch_of(), Mix(mixup, cutmix, 5, seed=3)
    kinds = set()
    for step in range(12):
        mixed = mix(batch, step)
        share, box = mix._draw(step, 4, 12, 20)
        assert mixed.label is not None and torch.allclose(mixed.label.sum(1), torch.ones(8))
        for row in range(8):
            other, (left, top, right, bottom) = row ^ 1, box[row // 2]
            own = torch.ones(12, 20)
            own[top:bottom, left:right] = float(share[row // 2])
            kinds.add("cut" if share[row // 2] == 0 else "blend")
            expected = own * batch.image[row] + (1 - own) * batch.image[other]
            assert torch.allclose(mixed.image[row], expected, atol=1e-5)
            truth = own.mean() * F.one_hot(torch.tensor(row % 5), 5) + (1 - own.mean()) * F.one_hot(
                torch.tensor(other % 5), 5
            )
            assert torch.allclose(mixed.label[row], truth, atol=1e-5)
    assert kinds == {kind for kind, on in (("blend", mixup), ("cut", cutmix)) if on}


def test_a_batch_in_parts_is_mixed_as_the_whole_and_steps_differ() -> None:
    several = (torch.rand(8, 5, generator=keyed.generator(0, "labels")) < 0.4).float()
    valid = torch.rand(8, 12, 20, generator=keyed.generator(0, "valid")) < 0.5
    batch, mix = replace(batch_of(label=several), valid=valid), Mix(0.4, 1.0, 5, seed=0)
    whole = mix(batch, 7)
    parts = [mix(batch.part(start, start + 4), 7) for start in (0, 4)]
    for name in ("image", "label", "valid"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts])), name
    assert not torch.equal(whole.image, mix(batch, 8).image)
