"""Batch and Output: what travels from the loader through a method to the loop, each tensor stated once.

B = samples in this process's micro-batch, C = bands, H, W = pixels. The names are TorchGeo's where it has one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor

IGNORED = 255  # in masks: a pixel that has no class or is not scored


class Rows(NamedTuple):
    """Where a micro-batch stands in the global batch of its step, so that masks do not depend on the process count.

    Attributes:
        start: global position of its first sample, 0 <= start < total.
        total: samples in the global batch.
    """

    start: int
    total: int


class Skip(NamedTuple):
    """An image that could not be read and was replaced by another draw: its uri and the reason."""

    uri: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """Samples side by side.

    Attributes:
        image: (B, C, H, W). Digital numbers in uint8, uint16 or float32 as loaded; float32, normalised per band
            ((x - mean) / std), with 0 where ``valid`` is False, once ``data.normalise`` has run on the device.
        lon: (B,) float64, degrees east in EPSG:4326; NaN when unknown.
        lat: (B,) float64, degrees north in EPSG:4326; NaN when unknown.
        time: (B,) float64, seconds since 1970-01-01 UTC; NaN when unknown.
        index: (B,) int64, row of the manifest.
        valid: (B, H, W) bool, False where there is no data; None when every pixel of the batch is real.
        label: (B,) int64 class, or (B, C) float32 in [0, 1]: several labels, or soft ones after mixup; None without.
        mask: (B, H, W) int64 class of each pixel, 255 where it is not scored; None without.
        redundancy: (B, N) float32, each patch's score computed beforehand (see ``sieve.similarity``); None without.
        objects: (B, M, 4, 2) float32, corners of each object, x and y in pixels of the image; None without.
        object_classes: (B, M) int64, class of each; -1 where an image has less than M objects.
        object_difficult: (B, M) bool, True of what is neither hit nor miss (a crowd, hard to see); None = none.
        neighbours: (B, K - 1, C, H, W), images of neighbouring ground, as ``image``; None without.
        neighbours_valid: (B, K - 1, H, W), as ``valid``.
        boxes: (B, K, 4) float32, left, top, right, bottom of what image and neighbours show, in metres from the lower
            left corner of all of them; None without neighbours.
        kinds: (B, K - 1) int64, how each is a neighbour, into ``data.pairs.KINDS``; None without.
        overlap: B numbers in [0, 1], IoU of a sample's boxes, the mean over its pairs; on the host, which counts tokens
            by it. Empty without neighbours.
        rows: the micro-batch's place in the global batch; None outside training.
        progress: fraction of training done before this step, in [0, 1).
        skipped: images that could not be read in the making of this batch.
    """

    image: Tensor
    lon: Tensor
    lat: Tensor
    time: Tensor
    index: Tensor
    valid: Tensor | None = None
    label: Tensor | None = None
    mask: Tensor | None = None
    redundancy: Tensor | None = None
    objects: Tensor | None = None
    object_classes: Tensor | None = None
    object_difficult: Tensor | None = None
    neighbours: Tensor | None = None
    neighbours_valid: Tensor | None = None
    boxes: Tensor | None = None
    kinds: Tensor | None = None
    overlap: tuple[float, ...] = ()
    rows: Rows | None = None
    progress: float = 0.0
    skipped: tuple[Skip, ...] = ()

    def __len__(self) -> int:
        return int(self.image.shape[0])

    def to(self, device: torch.device) -> Batch:
        """Return the batch on ``device``; the copy does not block the host when memory is pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory (called by torch's DataLoader)."""
        return self._map(lambda tensor: tensor.pin_memory())

    def part(self, start: int, stop: int) -> Batch:
        """Return samples ``start`` to ``stop``, with ``rows`` moved along."""
        rows = None if self.rows is None else Rows(self.rows.start + start, self.rows.total)
        return replace(self._map(lambda tensor: tensor[start:stop]), rows=rows, overlap=self.overlap[start:stop])

    def _map(self, change) -> Batch:  # type: ignore[no-untyped-def]
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if hasattr(getattr(self, f.name), "dtype")}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})


@dataclass(frozen=True)
class Output:
    """What a method returns for a batch.

    Attributes:
        loss: () float32, mean over the micro-batch; differentiable.
        metrics: name -> () tensor, detached, on the device; the loop logs them without waiting.
        picture: tensors for the picture of the run, only when asked for (see ``train.picture``).
        embeddings: (B, D) one vector per image, with gradient, for ``methods.regularisers``: the first view's
            projection, or the mean of the encoded patches; None of supervised methods.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    picture: dict[str, Tensor] = field(default_factory=dict)
    embeddings: Tensor | None = None
