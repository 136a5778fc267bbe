"""RUPerNet learns real masks by heart, and its maps of them lie where the images lie: FLAIR and SpaceNet-7 samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.windows import Window

from terrasieve import keyed, manifest
from terrasieve.batch import Batch
from terrasieve.curate.scan import scan
from terrasieve.data.augment import ImageSettings, normalise
from terrasieve.data.images import Images, band_statistics, from_table
from terrasieve.data.masks import Masks, MaskSettings, find_masks
from terrasieve.data.samples import WholeSamples, collate
from terrasieve.data.truth import Truth
from terrasieve.evaluate import dense
from terrasieve.evaluate.maps import predicted_parts, side_by_side, write_geotiff
from terrasieve.methods.rupernet import RUPerNet, RUPerNetSettings
from terrasieve.nn.encoder import Encoder, EncoderSettings

FLAIR = (
    *("building", "pervious surface", "impervious surface", "bare soil", "water", "coniferous", "deciduous"),
    *("brushwood", "vineyard", "herbaceous vegetation", "agricultural land", "plowed land", "other"),
)
TASKS: dict[str, dict[str, Any]] = {
    "flair2_samples": {
        "masks": MaskSettings(replace=("aerial.tif", "mask.tif"), classes=FLAIR, values=tuple(range(1, 14))),
        "size_px": 64,
        "patch_px": 8,
        "steps": 60,
    },
    # Houses of two or three pixels: small patches, and a finest level of the image's own resolution.
    "spacenet7_samples": {
        "masks": MaskSettings(replace=("images.tif", "mask.tif"), classes=("ground", "building")),
        "size_px": 32,
        "patch_px": 4,
        "steps": 120,
    },
}


def richest_windows(folder: Path, settings: MaskSettings, side: int) -> tuple[Images, Masks]:
    """Take the window of each image that holds the most classes, the most evenly."""
    table = scan([folder], pattern=f"*{settings.replace[0]}", labels="none").table
    masks = find_masks(from_table(table), settings)
    rows = []
    for number, row in enumerate(table.to_pylist()):
        mask = masks.read(number)
        corners = [(x, y) for y in range(0, 512 - side, side) for x in range(0, 512 - side, side)]
        counts = {(x, y): np.bincount(mask[y : y + side, x : x + side].ravel()) for x, y in corners}
        x, y = min(corners, key=lambda corner: (-(counts[corner] > 0).sum(), counts[corner].max()))
        rows.append(row | {"window": [x, y, side, side], "width": side, "height": side})
    images = from_table(manifest.rows_to_table(rows))
    return images, find_masks(images, settings)


def learn(method: RUPerNet, batch: Batch, steps: int) -> None:
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        optimizer.zero_grad()
        method(batch, keyed.generator(0, "mask", step)).loss.backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)
        optimizer.step()
        schedule.step()


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.0, 0.6])
@pytest.mark.parametrize("name", TASKS)
def test_overfits_real_masks_and_maps_them(shared_data: Path, tmp_path: Path, name: str, ratio: float) -> None:
    task = TASKS[name]
    images, masks = richest_windows(shared_data / name, task["masks"], task["size_px"])
    mean, std = band_statistics(images, 0)
    settings = ImageSettings(size_px=task["size_px"], mean=mean, std=std)
    samples = WholeSamples(images, settings, Truth(masks=masks))
    batch = normalise(collate([samples[row] for row in range(len(samples))]), torch.tensor(mean), torch.tensor(std))
    encoder = Encoder(
        EncoderSettings(name="vit_tiny_patch16_224", patch_px=task["patch_px"], depth=2), len(mean), settings.shape_px
    )
    drop = {"policy": "static", "ratio": ratio}
    method = RUPerNet(RUPerNetSettings(drop=drop, width=32, classes=len(masks.classes)), encoder)
    learn(method, batch, task["steps"])

    method.eval()
    matrices = []
    for row, uri in enumerate(images.uris):
        path = tmp_path / f"{row}.tif"
        parts = predicted_parts(method.predict, images, row, settings)
        write_geotiff(parts, images, row, masks.classes, path)
        with rasterio.open(path) as file, rasterio.open(uri) as source:
            window = Window(*images.windows[row].tolist())
            assert file.crs == source.crs and file.transform.almost_equals(source.window_transform(window))
            predicted, truth = file.read(1), masks.read(row)
        matrices.append(
            dense.confusion(torch.from_numpy(predicted)[None], torch.from_numpy(truth)[None], len(masks.classes))
        )
        picture = side_by_side(images.read(row).array, [truth, predicted], masks.classes, images.bands)
        (tmp_path / f"{row}.png").write_bytes(picture)
    miou = dense.values(torch.cat(matrices))["miou"]
    print(name, ratio, miou)
    assert miou > 0.9
