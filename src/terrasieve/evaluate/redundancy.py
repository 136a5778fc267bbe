"""Redundancy of images: how alike the patches of an image are, and how much each of them holds.

After ``data`` and ``nn``. ``redundancy_table`` runs it over a manifest for ``terrasieve redundancy``; the trainer's
cache of patch scores comes from the same code. Source of the scores: METHODS.md, section 7; HOG: section 3.

Shapes: B images, N patches of the grid, D values of a token, C bands.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from torch import Tensor

from terrasieve.batch import Batch
from terrasieve.data.augment import ImageSettings
from terrasieve.data.images import Images
from terrasieve.errors import UserError
from terrasieve.evaluate.reading import chunked, over_images
from terrasieve.files import written_aside
from terrasieve.methods.dropping import DropSettings
from terrasieve.methods.reconstruction import share_valid
from terrasieve.nn.encoder import Encoder
from terrasieve.nn.patches import patchify
from terrasieve.section import Section
from terrasieve.sieve.richness import hog_energy
from terrasieve.sieve.similarity import Reduction, effective_rank, redundancy

Source = Literal["pixels", "embeddings", "features"]
GREY_LEVELS, GREY_SPAN = 256, 3.0  # entropy: levels between plus and minus so many standard deviations
RICH_SHARE = 0.25
SCORES = ("cosine_mean", "cosine_largest", "cover_kept", "hog_energy", "hog_share", "entropy_bits", "effective_rank")


class RedundancySettings(Section):
    """What is compared, and how.

    Attributes:
        patch_px: side of a patch; divides the images' sides.
        of: raw patches normalised per band, an encoder's patch embeddings before positions, or its final features.
        reduction: how a patch's similarities to the others become the score that ranks it.
        threshold: cosine from which on the greedy cover drops a patch as one that it has already.
    """

    patch_px: PositiveInt = 16
    of: Source = "pixels"
    reduction: Reduction = "mean"
    threshold: float = Field(default=0.9, gt=-1, le=1)


def tokens_of(image_BCHW: Tensor, patch_px: int, of: Source, encoder: Encoder | None) -> Tensor:
    """Return what is compared: (B, N, D) raw patches, patch embeddings without positions, or final features."""
    if of == "pixels":
        return patchify(image_BCHW, patch_px)
    if encoder is None:
        raise UserError(f"Redundancy of {of} needs an encoder; give one, or compare pixels.")
    if of == "embeddings":
        return encoder.embed(patchify(image_BCHW, patch_px), position=False)
    return encoder.encode(image_BCHW)[:, 1:]


def real_patches(batch: Batch, patch_px: int) -> Tensor:
    """Return (B, N) bool: patches with a real pixel, as training counts them."""
    share_BN = share_valid(batch, patch_px)
    if share_BN is not None:
        return share_BN > 0
    B, _, H, W = batch.image.shape
    return torch.ones(B, (H // patch_px) * (W // patch_px), dtype=torch.bool, device=batch.image.device)


def image_scores(batch: Batch, settings: RedundancySettings, encoder: Encoder | None = None) -> dict[str, Tensor]:
    """Score images.

    Args:
        batch: normalised.
        settings: what is compared.
        encoder: for embeddings and features.

    Returns:
        ``real_patches`` (B,) int64, and float32 (B,), NaN where fewer than two patches are real:
        ``cosine_mean``, ``cosine_largest``: a patch's mean, largest cosine to the other patches, averaged over patches.
        ``cover_kept``: share of patches that a greedy cover at ``threshold`` keeps, in (0, 1].
        ``hog_energy``: mean over patches of the HOG energy of the normalised image.
        ``hog_share``: share of that energy in the richest quarter of the patches; .25 = evenly spread.
        ``entropy_bits``: of the histogram of grey (mean of the normalised bands) over real pixels, 0 to 8.
        ``effective_rank``: of the tokens, 1 to min(N, D).
    """
    real_BN = real_patches(batch, settings.patch_px)
    count_B = real_BN.sum(dim=1)
    tokens_BND = tokens_of(batch.image, settings.patch_px, settings.of, encoder).float()
    tokens_BND = tokens_BND * real_BN[..., None]  # zero rows leave the singular values as they are

    def mean(values_BN: Tensor) -> Tensor:
        return torch.where(real_BN, values_BN, 0.0).sum(dim=1) / count_B

    cover_BN = redundancy(tokens_BND, "cover", real_BN)
    hog_BN = torch.where(real_BN, hog_energy(batch.image, settings.patch_px), 0.0)
    scores = {
        "cosine_mean": mean(redundancy(tokens_BND, "mean", real_BN)),
        "cosine_largest": mean(redundancy(tokens_BND, "largest", real_BN)),
        "cover_kept": mean((cover_BN < settings.threshold).float()),
        "hog_energy": mean(hog_BN),
        "hog_share": _share_of_richest(hog_BN, count_B),
        "entropy_bits": _entropy_bits(batch),
        "effective_rank": effective_rank(tokens_BND),
    }
    scored_B = count_B >= 2
    return {"real_patches": count_B} | {
        name: torch.where(scored_B, values_B.float(), torch.nan) for name, values_B in scores.items()
    }


def _share_of_richest(hog_BN: Tensor, count_B: Tensor) -> Tensor:
    """Return the share of the energy in the richest quarter of the ``count_B`` real patches; .25 without any energy."""
    descending_BN = hog_BN.sort(dim=1, descending=True).values
    rank_N = torch.arange(hog_BN.shape[1], device=hog_BN.device)
    within_BN = (RICH_SHARE * count_B[:, None] - rank_N).clamp(0, 1)  # the patch at the edge counts in part
    total_B = hog_BN.sum(dim=1)
    return torch.where(total_B > 0, (descending_BN * within_BN).sum(dim=1) / total_B, RICH_SHARE)


def _entropy_bits(batch: Batch) -> Tensor:
    """Return the entropy of each image's grey histogram over real pixels: (B,) float32, bits."""
    grey_BP = batch.image.mean(dim=1).flatten(1)
    level_BP = ((grey_BP / GREY_SPAN + 1) * (GREY_LEVELS / 2)).clamp(0, GREY_LEVELS - 1).long()
    B = len(grey_BP)
    slot_BP = level_BP + GREY_LEVELS * torch.arange(B, device=level_BP.device)[:, None]
    weights = None if batch.valid is None else batch.valid.flatten().float()
    counts = torch.bincount(slot_BP.flatten(), weights, minlength=B * GREY_LEVELS).view(B, GREY_LEVELS).double()
    share_BL = counts / counts.sum(dim=1, keepdim=True).clamp_min(1)
    return -(share_BL * share_BL.clamp_min(1e-12).log2()).sum(dim=1).float()


def patch_redundancy(
    batch: Batch, patch_px: int, of: Source, reduction: Reduction, encoder: Encoder | None = None
) -> Tensor:
    """Score the patches of normalised images: (B, N) float32, higher = more redundant, +inf for no-data."""
    tokens_BND = tokens_of(batch.image, patch_px, of, encoder).float()
    return redundancy(tokens_BND, reduction, real_patches(batch, patch_px))


@dataclass(frozen=True)
class ImageScorer:
    """:func:`image_scores` with its settings, as worker processes take it."""

    settings: RedundancySettings
    encoder: Encoder | None = None

    @property
    def device(self) -> torch.device:
        """Where images are scored: where the encoder is."""
        return torch.device("cpu") if self.encoder is None else self.encoder.positions.device

    def __call__(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Score a normalised batch: name -> (B,)."""
        scores = image_scores(batch, self.settings, self.encoder)
        return {name: values_B.cpu().numpy() for name, values_B in scores.items()}  # tensors would be passed as files


@dataclass(frozen=True)
class PatchScorer:
    """:func:`patch_redundancy` with its settings, as worker processes take it."""

    patch_px: int
    of: Source
    reduction: Reduction
    encoder: Encoder | None

    def __call__(self, batch: Batch) -> NDArray[np.float32]:
        """Score a normalised batch: (B, N)."""
        return patch_redundancy(batch, self.patch_px, self.of, self.reduction, self.encoder).cpu().numpy()


def patch_scores(
    images: Images,
    image: ImageSettings,
    drop: DropSettings,
    patch_px: int,
    encoder: Encoder | None,
    path: Path,
    key: str,
    on_images: Callable[[int, int], None] | None = None,
    *,
    workers: int | None = None,
) -> NDArray[np.float32]:
    """Return the redundancy of every patch of every image, computed once and kept in a file.

    Args:
        images: what to read.
        image: size, and each band's mean and standard deviation; no augmentation takes place.
        drop: ``of`` and ``reduction``.
        patch_px: side of a patch.
        encoder: for ``of="embeddings"``.
        path: the file, ``.npy``.
        key: what the scores depend on (manifest hash, settings, encoder); a file with another key is made anew.
        on_images: called with images done and their total.
        workers: see :func:`over_images`.

    Returns:
        (n, N) float32, read-only, mapped from ``path``; higher = more redundant, +inf for no-data patches and for all
        patches of an image that cannot be read.

    Raises:
        UserError: embeddings without an encoder, mean or standard deviation missing, or a patch that does not divide.
    """
    rows, columns = checked_grid(image, patch_px)
    shape = (len(images), rows * columns)
    if not _holds(path, key, shape):
        device = torch.device("cpu") if encoder is None or drop.of == "pixels" else encoder.positions.device
        scorer = PatchScorer(patch_px, drop.of, drop.reduction, encoder)
        with written_aside(path) as aside:
            scores = np.lib.format.open_memmap(aside, mode="w+", dtype=np.float32, shape=shape)
            for scored in over_images(images, image, scorer, chunked(len(images)), workers, device):
                scores[scored.rows.start : scored.rows.stop] = np.inf
                if scored.read:
                    scores[scored.read] = scored.values
                if on_images is not None:
                    on_images(scored.rows.stop, len(images))
            scores.flush()
            del scores
            with aside.open("ab") as file:
                file.write(key.encode())  # behind the array, where readers of .npy do not look
    return cast("NDArray[np.float32]", np.load(path, mmap_mode="r"))


def _holds(path: Path, key: str, shape: tuple[int, int]) -> bool:
    """Tell whether a file holds the scores of this key, whole."""
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            found, _, dtype = np.lib.format.read_array_header_1_0(file)
            file.seek(int(np.prod(found)) * dtype.itemsize, os.SEEK_CUR)
            return (found, file.read()) == (shape, key.encode())
    except (OSError, ValueError):
        return False


def checked_grid(image: ImageSettings, patch_px: int) -> tuple[int, int]:
    """Return rows and columns of patches.

    Raises:
        UserError: a patch that does not divide the image, or leaves nothing to compare; unknown mean or deviation.
    """
    height, width = image.shape_px
    if height % patch_px or width % patch_px or height * width < 2 * patch_px**2:
        raise UserError(
            f"A patch of {patch_px} px does not divide an image of {height} x {width} px into two patches or more. "
            f"Choose an image size that is a multiple of {patch_px}, or another patch."
        )
    if image.mean is None or image.std is None:
        raise UserError("Redundancy needs each band's mean and standard deviation (image.mean, image.std).")
    return height // patch_px, width // patch_px
