"""Gallery of the redundancy page: an image, and what is left of it as more and more patches are dropped."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from terrasieve.imagery.stretch import display_bands, limits, stretched
from terrasieve.sieve.dropping import static_ids

RATIOS = (0.25, 0.5, 0.75, 0.85)
TILE_PX, GAP_PX = 150, 6


def strip(
    image_CHW: Tensor,
    valid_HW: Tensor | None,
    score_N: Tensor,
    patch_px: int,
    bands: tuple[str, ...],
    ratios: Sequence[float] = RATIOS,
) -> bytes:
    """Draw the image and, for each ratio, its kept patches in colour among dropped ones in pale grey.

    Args:
        image_CHW: digital numbers; stretched from the 1st to the 99th percentile, uint8 the same in all bands.
        valid_HW: False where there is no data.
        score_N: redundancy of the patches, row-major, +inf for no data; the least redundant are kept.
        patch_px: side of a patch.
        bands: names, to find red, green and blue.
        ratios: shares of patches dropped, in [0, 1).

    Returns:
        A JPEG, the tiles side by side.
    """
    rgb_3HW = image_CHW[display_bands(bands)].numpy()
    real_HW = None if valid_HW is None else valid_HW.numpy()
    rgb_HW3 = stretched(rgb_3HW, real_HW, limits([rgb_3HW], [real_HW]))
    height, width = rgb_HW3.shape[:2]
    tiles = [rgb_HW3]
    for ratio in ratios:
        kept_N = torch.zeros(len(score_N), dtype=torch.bool)
        kept_N[static_ids(score_N[None], max(1, round((1 - ratio) * len(score_N))))[0]] = True
        grid = kept_N.view(height // patch_px, width // patch_px).numpy()
        kept_HW1 = grid.repeat(patch_px, 0).repeat(patch_px, 1)[..., None]
        pale = 0.3 * rgb_HW3.mean(axis=2, keepdims=True) + 0.62
        tiles.append(np.where(kept_HW1, rgb_HW3, pale))
    shape = (round(TILE_PX * width / height), TILE_PX)
    sheet = Image.new("RGB", (len(tiles) * (shape[0] + GAP_PX) - GAP_PX, TILE_PX), "white")
    for place, tile in enumerate(tiles):
        picture = Image.fromarray((tile * 255).round().astype(np.uint8))
        how = Image.Resampling.NEAREST if height < TILE_PX else Image.Resampling.BOX
        sheet.paste(picture.resize(shape, how), (place * (shape[0] + GAP_PX), 0))
    content = io.BytesIO()
    sheet.save(content, "JPEG", quality=84, optimize=True)
    return content.getvalue()
