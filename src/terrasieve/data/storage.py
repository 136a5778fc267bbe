"""Storage: how many pixels are decoded for each one that a crop shows, told before training where it is many.

Beside ``survey``. A JPEG or PNG is decoded whole, a TIFF block by block, and its blocks may be whole rows or the whole
file; so small crops of large scenes may cost far more than they need. A keyed sample of the files is looked at.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from terrasieve import keyed
from terrasieve.data.augment import ImageSettings
from terrasieve.data.groups import Groups
from terrasieve.data.images import Images
from terrasieve.imagery.unreadable import UnreadableImage

LOOKED_AT = 24
MANY = 8.0


class Stored(NamedTuple):
    """A file as it is decoded.

    Attributes:
        decoded: pixels decoded for each pixel that a crop shows.
        block_px: width and height of what is decoded at once.
        crop_px: width and height of a mean crop.
        uri: of the file.
    """

    decoded: float
    block_px: tuple[int, int]
    crop_px: tuple[int, int]
    uri: str


def take(images: Images, image: ImageSettings, groups: Groups | None, seed: int) -> Stored | None:
    """Look at a sample of local files.

    Args:
        images: of a manifest.
        image: size and augmentation, which say how large a crop is.
        groups: cut windows out of large images first; None = crops are of whole images.
        seed: chooses the sample.

    Returns:
        The one in the middle of the sample by ``decoded``; None where no file can be looked at (URLs, shards).
    """
    found = []
    most_px = np.full(2, np.inf) if groups is None else groups.cut_px(image)
    share = math.sqrt(sum(image.augment.crop_scale) / 2)  # side of a mean crop
    for row in keyed.numpy_generator(seed, "storage").permutation(len(images))[:LOOKED_AT].tolist():
        stored = _stored(images.uris[row], share * np.minimum(images.windows[row, 2:], most_px))
        if stored is not None:
            found.append(stored)
    return sorted(found)[len(found) // 2] if found else None


def _stored(uri: str, crop_px: np.ndarray) -> Stored | None:
    # Here, not above: a machine without rasterio trains and measures on pixels in memory.
    from terrasieve.imagery import headers, members

    if headers.is_remote(uri) or members.parse(uri) is not None:
        return None
    try:
        size, block = headers.blocks_of(uri)
    except UnreadableImage:
        return None  # told where it is read
    touched = np.minimum(crop_px / block + 1, np.ceil(np.divide(size, block)))  # blocks, a mean over all places
    decoded = np.minimum(touched * block, size).prod() / crop_px.prod()
    return Stored(float(decoded), block, (round(crop_px[0]), round(crop_px[1])), uri)


def note(found: Stored | None) -> str | None:
    """Say what a person should know before training, if much is decoded for little."""
    if found is None or found.decoded < MANY:
        return None
    crop, block = (" x ".join(str(px) for px in sides) for sides in (found.crop_px, found.block_px))
    if found.uri.lower().endswith((".tif", ".tiff")):
        mend = "gdal_translate -co TILED=YES -co BLOCKXSIZE=256 -co BLOCKYSIZE=256 -co COMPRESS=ZSTD makes tiles"
    else:
        mend = "as TIFFs in tiles, or cut into files of their own, they would cost less"
    return (
        f"a crop of about {crop} px decodes {found.decoded:,.0f} times its pixels, since files are stored in blocks of "
        f"{block} px (e.g. {found.uri}); {mend}"
    )
