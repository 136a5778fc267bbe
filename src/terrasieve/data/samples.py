"""Samples: one image at a time, as the loader's workers make them.

Between ``images`` and ``loader``. A sample is a dict with TorchGeo's names: ``image``, ``lon``, ``lat``, ``time``,
``valid``, ``index``, and where the truth is known ``label``, ``mask``, ``redundancy``, ``objects``; with ``groups``
also its ``neighbours``. Everything random about it is keyed by (seed, epoch, index).
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from terrasieve import keyed
from terrasieve.batch import Batch, Skip
from terrasieve.data.augment import ImageSettings, random_crop, resize, resize_valid, turn
from terrasieve.data.boxes import Found
from terrasieve.data.groups import Groups, turned
from terrasieve.data.images import Images
from terrasieve.data.pairs import KINDS
from terrasieve.data.truth import Truth
from terrasieve.errors import UserError
from terrasieve.imagery import members
from terrasieve.imagery.unreadable import UnreadableImage

Sample = dict[str, Any]
SUBSTITUTES = 20
TRUTH = ("label", "mask", "redundancy")
SPREAD = ("image", "valid", "mask", "redundancy")  # what lies on the ground, and is mirrored and turned with it


class TrainSamples(Dataset[Sample]):
    """Random crops of a manifest's images, indexed by (epoch, index)."""

    def __init__(
        self,
        images: Images,
        settings: ImageSettings,
        seed: int,
        truth: Truth | None = None,
        on_damage: Literal["skip", "stop"] = "skip",
        groups: Groups | None = None,
    ) -> None:
        self.images, self.settings, self.seed, self.truth = images, settings, seed, truth or Truth()
        self.on_damage, self.groups = on_damage, groups

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Make a sample; an image that cannot be read is replaced by a keyed draw and listed under ``skipped``.

        Raises:
            UserError: if 20 images in a row cannot be read, or one lies in a damaged shard and that is to stop the run.
        """
        epoch, index = key
        skipped: list[Skip] = []
        row = index
        for attempt in range(SUBSTITUTES):
            try:
                sample = self._make(epoch, row)
            except UnreadableImage as error:
                lost = error.code == "missing" and members.parse(error.uri) is not None
                if self.on_damage == "stop" and (lost or error.code == "damaged_shard"):
                    raise UserError(
                        f"{error.detail}. Check the shards with `terrasieve shard -o FOLDER --verify`, write or copy "
                        "the damaged ones again, and resume; or let loader.on_damage=skip replace their images."
                    ) from error
                skipped.append(Skip(error.uri, error.reason))
                row = int(keyed.numpy_generator(self.seed, "substitute", epoch, index, attempt).integers(len(self)))
                continue
            sample["skipped"] = skipped
            return sample
        raise UserError(
            f"{SUBSTITUTES} images in a row cannot be read, the last one {skipped[-1].uri}: {skipped[-1].reason}. "
            "Is the disk or the mount that holds them still there? Index the folder again to sort the broken ones out."
        )

    def _make(self, epoch: int, row: int) -> Sample:
        draw = keyed.numpy_generator(self.seed, "augment", epoch, row)
        height, width = self.settings.shape_px
        augment = self.settings.augment
        group = None if self.groups is None else self.groups.cut(draw, row, epoch, self.images.windows, self.settings)
        if group is None:
            rows = [row]
            crops = [random_crop(draw, int(self.images.windows[row, 2]), int(self.images.windows[row, 3]), augment)]
        else:
            rows, crops = group.rows, group.crops
        mirror_x, mirror_y = (bool(bit) and augment.flips for bit in draw.integers(0, 2, 2))
        quarters = int(draw.integers(4)) if augment.turns and width == height else 0
        parts = [_read(self.images, self.truth, r, c, height, width) for r, c in zip(rows, crops, strict=True)]
        for part in parts:
            for name in SPREAD:
                if part[name] is not None:
                    part[name] = turn(part[name], mirror_x, mirror_y, quarters)
            if part["objects"] is not None:
                part["objects"] = part["objects"].turned(mirror_x, mirror_y, quarters, height, width)
        sample = parts[0]
        if group is not None:
            sample |= {"neighbours": parts[1:], "kinds": group.kinds, "overlap": group.overlap}
            sample["boxes"] = turned(group.boxes_K4, mirror_x, mirror_y, quarters)
        return sample


class WholeSamples(Dataset[Sample]):
    """Whole images, resampled to one size, without augmentation: for evaluation. Indexed by row."""

    def __init__(self, images: Images, settings: ImageSettings, truth: Truth | None = None) -> None:
        self.images, self.settings, self.truth = images, settings, truth or Truth()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> Sample:
        """Make a sample; an unreadable image raises, since an evaluation without it would be another one."""
        return {**_read(self.images, self.truth, row, None, *self.settings.shape_px), "skipped": []}


def _read(
    images: Images, truth: Truth, row: int, crop: tuple[int, int, int, int] | None, height: int, width: int
) -> Sample:
    pixels = images.read(row, crop)
    valid = None if pixels.valid is None else resize_valid(torch.from_numpy(pixels.valid), height, width)
    array = pixels.array
    if pixels.valid is not None and array.dtype == np.float32:
        array = np.where(pixels.valid, array, np.float32(0))  # NaN would spread through the resampling
    # The layout is kept: JPEG pixels come interleaved, which the resampling of uint8 is fastest on.
    array = array if array.flags.writeable else array.copy(order="K")
    return {
        "image": resize(torch.from_numpy(array), height, width),
        "valid": valid,
        "label": None if truth.labels is None else truth.labels[row],
        "mask": truth.read_mask(row, crop, height, width),
        "redundancy": truth.patch_redundancy(row),
        "objects": truth.read_boxes(row, crop, height, width),
        "lon": images.lon[row],
        "lat": images.lat[row],
        "time": images.time[row],
        "index": row,
    }


def collate(samples: list[Sample]) -> Batch:
    """Lay samples side by side."""
    known = {name: [s[name] for s in samples] for name in TRUTH if samples[0][name] is not None}
    lon, lat, time = (torch.tensor([s[name] for s in samples], dtype=torch.float64) for name in ("lon", "lat", "time"))
    return Batch(
        image=torch.stack([sample["image"] for sample in samples]),
        lon=lon,
        lat=lat,
        time=time,
        index=torch.tensor([sample["index"] for sample in samples]),
        valid=_valid(samples),
        label=torch.stack(known["label"]) if "label" in known else None,
        mask=torch.stack(known["mask"]) if "mask" in known else None,
        redundancy=torch.stack([grid.flatten() for grid in known["redundancy"]]) if "redundancy" in known else None,
        skipped=tuple(skip for sample in samples for skip in sample["skipped"]),
        **_objects([sample["objects"] for sample in samples]),
        **(_neighbours(samples) if "neighbours" in samples[0] else {}),
    )


def _objects(found: list[Found | None]) -> dict[str, Any]:
    """Lay objects side by side, filled up to the largest number of an image; see ``Batch``."""
    own = [objects for objects in found if objects is not None]
    if not own:
        return {}
    fill = partial(nn.utils.rnn.pad_sequence, batch_first=True)
    return {
        "objects": fill([objects.polygons for objects in own]),
        "object_classes": fill([objects.numbers for objects in own], padding_value=-1),
        "object_difficult": fill([objects.difficult for objects in own]),
    }


def _valid(samples: list[Sample]) -> Tensor | None:
    """Lay masks of real pixels side by side, None when all are."""
    if all(sample["valid"] is None for sample in samples):
        return None
    real = torch.ones(samples[0]["image"].shape[-2:], dtype=torch.bool)
    return torch.stack([real if s["valid"] is None else s["valid"] for s in samples])


def _neighbours(samples: list[Sample]) -> dict[str, Any]:
    """Lay side by side what groups have beside their anchors, see ``Batch``."""
    B, parts = len(samples), [part for sample in samples for part in sample["neighbours"]]
    valid = _valid(parts)
    return {
        "neighbours": _grouped(torch.stack([part["image"] for part in parts]), B),
        "neighbours_valid": None if valid is None else _grouped(valid, B),
        "boxes": torch.stack([sample["boxes"] for sample in samples]),
        "kinds": torch.tensor([[KINDS.index(kind) for kind in sample["kinds"]] for sample in samples]),
        "overlap": tuple(sample["overlap"] for sample in samples),
    }


def _grouped(stacked: Tensor, groups: int) -> Tensor:
    return stacked.view(groups, -1, *stacked.shape[1:])
