"""Richness of images: from one small grey picture of each its HOG energy, its entropy and a thumbnail.

Between ``imagery.preview`` and ``subsets``, which ranks images by them. Unlike ``redundancy`` it takes images of any
bands, types and sizes together, as a curated set holds them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from terrasieve.curate import hashing
from terrasieve.curate.engine import Engine, Lost
from terrasieve.curate.step import Tick
from terrasieve.imagery.preview import preview
from terrasieve.imagery.stretch import limits, stretched
from terrasieve.imagery.unreadable import UnreadableImage
from terrasieve.sieve.richness import hog_energy

SIDE_PX, PATCH_PX = 128, 16
PART = 256  # images that a worker takes at once
Place = tuple[str, list[int] | None, list[str]]  # uri, window, bands


class Richness(NamedTuple):
    """What is known of n images; NaN and zero where an image could not be read.

    Attributes:
        hog: (n,) float32, mean energy of patches of 16 px at about 128 px a side, squared digital numbers.
        bright: (n,) float32, the 98th percentile of the magnitudes: the scale that ``hog`` is judged by.
        entropy: (n,) float32, bits, of ``curate.hashing``.
        thumbs: (n, 32, 32) uint8 grey.
    """

    hog: np.ndarray
    bright: np.ndarray
    entropy: np.ndarray
    thumbs: np.ndarray

    def energy(self, kind: np.ndarray) -> np.ndarray:
        """Return (n,) HOG energy in squares of the typical brightness of the image's kind, so that sensors compare.

        Args:
            kind: (n,) int64, e.g. the number of source and type.
        """
        result = np.full(len(self.hog), np.nan, np.float32)
        for number in np.unique(kind):
            rows = kind == number
            known = self.bright[rows][np.isfinite(self.bright[rows])]
            scale = max(float(np.median(known)), 1e-9) if len(known) else 1.0
            result[rows] = self.hog[rows] / scale**2
        return result


def measure(places: list[Place], engine: Engine, tick: Tick) -> Richness:
    """Read images once and measure them.

    Args:
        places: uri, window and bands of each.
        engine: runs parts of them.
        tick: told the images done and their number.
    """
    n = len(places)
    parts = [places[start : start + PART] for start in range(0, n, PART)]
    nothing = np.full(n, np.nan, np.float32)
    result = Richness(nothing, nothing.copy(), nothing.copy(), np.zeros((n, 32, 32), np.uint8))
    done = 0
    for number, part in engine.run(_measure, parts):
        rows = slice(number * PART, number * PART + len(parts[number]))
        if not isinstance(part, Lost):  # lost: a decoder that crashes; the rest of its part is lost with it
            for into, values in zip(result, part, strict=True):
                into[rows] = values
        done += len(parts[number])
        tick(done, n)
    return result


def _measure(places: list[Place]) -> Richness:
    torch.set_num_threads(1)
    n = len(places)
    hog, bright = np.full((2, n), np.nan, np.float32)
    thumbs = np.zeros((n, 32, 32), np.uint8)
    for row, (uri, window, bands) in enumerate(places):
        try:
            seen = preview(uri, window, bands, SIDE_PX)
        except (UnreadableImage, OSError):
            continue
        values_3HW = np.nan_to_num(seen.rgb_3HW.astype(np.float32), posinf=0, neginf=0)
        if seen.valid_HW is not None:
            real = values_3HW[:, seen.valid_HW]
            values_3HW = np.where(seen.valid_HW, values_3HW, real.mean() if real.size else np.float32(0))
        hog[row] = float(hog_energy(torch.from_numpy(_whole_patches(values_3HW))[None], PATCH_PX).mean())
        bright[row] = np.quantile(np.abs(values_3HW), 0.98)
        shown = stretched(values_3HW, None, limits([seen.rgb_3HW], [seen.valid_HW])).mean(axis=2)
        thumbs[row] = hashing.thumbnail((shown * 255 + 0.5).astype(np.uint8))
    entropy = np.where(np.isfinite(hog), hashing.hashes(thumbs).entropy, np.float32(np.nan))
    return Richness(hog, bright, entropy, thumbs)


def _whole_patches(image_3HW: np.ndarray) -> np.ndarray:
    """Cut an image to a multiple of the patch; one that is smaller is repeated at its edges."""
    H, W = image_3HW.shape[1:]
    short = [(0, 0), (0, max(0, PATCH_PX - H)), (0, max(0, PATCH_PX - W))]
    image_3HW = np.pad(image_3HW, short, "edge")
    H, W = (side // PATCH_PX * PATCH_PX for side in image_3HW.shape[1:])
    return np.ascontiguousarray(image_3HW[:, :H, :W])
