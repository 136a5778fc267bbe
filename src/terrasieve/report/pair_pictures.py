"""Pictures of a pair of images: both under one stretch, the second turned and shifted onto the first, their difference.

For review, the audit's and the curation's pages. Where the two cannot be compared number by number, since their types
or bands differ, each has a stretch of its own, and ``common`` says so.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from terrasieve.curate.hashing import ORIENTATIONS
from terrasieve.imagery.preview import Preview, preview
from terrasieve.imagery.stretch import limits, stretched, to_bytes
from terrasieve.imagery.unreadable import UnreadableImage

GAIN = 4  # the difference is shown this many times as bright: a quarter of the range is white
GAP_PX = 6
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of a picture


@dataclass(frozen=True)
class PairPictures:
    """What there is to see of a pair.

    Attributes:
        left: (H, W, 3) uint8, the first image; None when it cannot be read.
        right: (H, W, 3) uint8, the second one, turned as the pair says.
        difference: (h, w, 3) uint8 grey, ``GAIN`` x the absolute difference of what both show, mean of the bands;
            None without both.
        mean_difference: mean absolute difference, of the range shown, in [0, 1]; of pixels that are real in both.
        shared_left: what the first shows of the ground that both show.
        shared_right: the same of the second.
        common: both have the same stretch.
        errors: why the first and the second cannot be read; empty where they can.
    """

    left: NDArray[np.uint8] | None
    right: NDArray[np.uint8] | None
    difference: NDArray[np.uint8] | None = None
    mean_difference: float | None = None
    shared_left: Box | None = None
    shared_right: Box | None = None
    common: bool = True
    errors: tuple[str, str] = ("", "")


def pair_pictures(
    row_a: Mapping[str, Any],
    row_b: Mapping[str, Any],
    orientation: int | None = None,
    dx_px: int | None = None,
    dy_px: int | None = None,
    *,
    longest_px: int = 1024,
) -> PairPictures:
    """Read both images of a pair and draw them so that they can be compared.

    Args:
        row_a: of a manifest: ``uri``, ``window``, ``bands``.
        row_b: likewise.
        orientation: index into ``hashing.ORIENTATIONS`` that turns b so that it shows what a does; None = 0.
        dx_px: a[y + dy, x + dx] = b[y, x], after turning, in pixels of the images; None = the second is the first,
            perhaps of another size, and is resampled to it.
        dy_px: likewise.
        longest_px: of a picture; larger images are averaged down.
    """
    shifted = dx_px is not None or dy_px is not None
    sizes = [(row.get("width") or 0, row.get("height") or 0) for row in (row_a, row_b)]
    # Pictures that are laid over each other by an offset need the same scale.
    longest = max(longest_px, *(side for size in sizes for side in size))
    # Pictures that are laid over each other by an offset need the same scale.
    factor = -(-longest // longest_px) if shifted else None
    seen = [_seen(row, longest_px, factor) for row in (row_a, row_b)]
    errors = tuple(found if isinstance(found, str) else "" for found in seen)
    previews = [found if isinstance(found, Preview) else None for found in seen]
    if previews[1] is not None:
        previews[1] = _turned(previews[1], orientation or 0)
    a, b = previews
    if a is None or b is None:
        return PairPictures(_alone(a), _alone(b), errors=(errors[0], errors[1]))
    common = a.bands == b.bands and a.rgb_3HW.dtype == b.rgb_3HW.dtype
    both = limits([a.rgb_3HW, b.rgb_3HW], [a.valid_HW, b.valid_HW]) if common else None
    left, right = (stretched(x.rgb_3HW, x.valid_HW, both or limits([x.rgb_3HW], [x.valid_HW])) for x in (a, b))
    shift = [round((step or 0) / (factor or 1)) for step in (dx_px, dy_px)]
    boxes = _shared(left.shape, right.shape, *shift) if shifted else (_whole(left), _whole(right))
    difference, mean = _difference(left, right, a.valid_HW, b.valid_HW, boxes) if boxes else (None, None)
    box_a, box_b = boxes or (None, None)
    return PairPictures(to_bytes(left), to_bytes(right), difference, mean, box_a, box_b, common)


def pair_picture(
    row_a: Mapping[str, Any],
    row_b: Mapping[str, Any],
    orientation: int | None = None,
    dx: int | None = None,
    dy: int | None = None,
    *,
    tile_px: int = 256,
) -> bytes:
    """Return a JPEG: the first image, the second as the pair turns it, and their difference, side by side.

    Args:
        row_a: of a manifest.
        row_b: likewise.
        orientation: see :func:`pair_pictures`.
        dx: offset in pixels, likewise.
        dy: likewise.
        tile_px: side of the square that each picture is fitted into; what both show is outlined in shifted pairs.
    """
    shown = pair_pictures(row_a, row_b, orientation, dx, dy, longest_px=2 * tile_px)
    outlined = dx is not None or dy is not None
    boxes = (shown.shared_left, shown.shared_right) if outlined else (None, None)
    tiles = [
        _tile(shown.left, shown.errors[0], boxes[0], tile_px),
        _tile(shown.right, shown.errors[1], boxes[1], tile_px),
    ]
    tiles.append(_tile(shown.difference, "no difference to show", None, tile_px))
    sheet = Image.new("RGB", (3 * tile_px + 2 * GAP_PX, tile_px), "white")
    for place, tile in enumerate(tiles):
        sheet.paste(tile, (place * (tile_px + GAP_PX), 0))
    return jpeg(np.asarray(sheet), quality=86)


def jpeg(picture_HW3: NDArray[np.uint8], quality: int = 92) -> bytes:
    """Return a picture as JPEG bytes, its colours at full resolution."""
    content = io.BytesIO()
    Image.fromarray(picture_HW3).save(content, "JPEG", quality=quality, subsampling=0)
    return content.getvalue()


def thumbnail(row: Mapping[str, Any], longest_px: int = 96) -> bytes:
    """Return a JPEG of one image under its own stretch.

    Raises:
        UnreadableImage: there is nothing to see.
    """
    shown = _alone(preview(row["uri"], row.get("window"), row.get("bands"), longest_px))
    assert shown is not None
    return jpeg(shown, quality=80)


def _seen(row: Mapping[str, Any], longest_px: int, factor: int | None) -> Preview | str:
    try:
        return preview(row["uri"], row.get("window"), row.get("bands"), longest_px, factor=factor)
    except UnreadableImage as error:
        return error.reason


def _turned(image: Preview, orientation: int) -> Preview:
    quarters, mirrored = ORIENTATIONS[orientation]
    rgb = np.rot90(image.rgb_3HW, quarters, (1, 2))
    valid = None if image.valid_HW is None else np.rot90(image.valid_HW, quarters)
    if mirrored:
        rgb, valid = rgb[:, :, ::-1], None if valid is None else valid[:, ::-1]
    return Preview(rgb, valid, image.bands)


def _alone(image: Preview | None) -> NDArray[np.uint8] | None:
    if image is None:
        return None
    return to_bytes(stretched(image.rgb_3HW, image.valid_HW, limits([image.rgb_3HW], [image.valid_HW])))


def _whole(picture: NDArray[Any]) -> Box:
    return 0, 0, picture.shape[1], picture.shape[0]


def _shared(shape_a: tuple[int, ...], shape_b: tuple[int, ...], dx: int, dy: int) -> tuple[Box, Box] | None:
    """Return the same ground in both, or None where the offset leaves none."""
    left, top = max(0, dx), max(0, dy)
    right, bottom = min(shape_a[1], shape_b[1] + dx), min(shape_a[0], shape_b[0] + dy)
    if right <= left or bottom <= top:
        return None
    return (left, top, right, bottom), (left - dx, top - dy, right - dx, bottom - dy)


def _difference(
    left: NDArray[np.float32],
    right: NDArray[np.float32],
    valid_a: NDArray[np.bool_] | None,
    valid_b: NDArray[np.bool_] | None,
    boxes: tuple[Box, Box],
) -> tuple[NDArray[np.uint8], float | None]:
    """Compare what both show, at the size of the smaller; where one has no data the difference is black."""
    cut_a, cut_b = (_cut(picture, box) for picture, box in zip((left, right), boxes, strict=True))
    shape = min(cut_a.shape[0], cut_b.shape[0]), min(cut_a.shape[1], cut_b.shape[1])
    real = np.ones(shape, np.bool_)
    for valid, box in zip((valid_a, valid_b), boxes, strict=True):
        if valid is not None:
            real &= _resampled(_cut(valid, box).astype(np.float32), shape) > 0.99
    amount = np.abs(_resampled(cut_a, shape) - _resampled(cut_b, shape)).mean(axis=2) * real
    mean = float(amount[real].mean()) if real.any() else None
    return to_bytes((GAIN * amount).clip(0, 1))[..., None].repeat(3, axis=2), mean


def _cut(picture: NDArray[Any], box: Box) -> NDArray[Any]:
    return picture[box[1] : box[3], box[0] : box[2]]


def _resampled(picture: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    if picture.shape[:2] == shape:
        return picture
    planes = picture.reshape(*picture.shape[:2], -1).transpose(2, 0, 1)
    size = (shape[1], shape[0])
    done = [Image.fromarray(np.ascontiguousarray(plane)).resize(size, Image.Resampling.BOX) for plane in planes]
    return np.stack([np.asarray(plane) for plane in done], axis=-1).reshape(*shape, *picture.shape[2:])


def _tile(picture: NDArray[np.uint8] | None, error: str, box: Box | None, side_px: int) -> Image.Image:
    tile = Image.new("RGB", (side_px, side_px), "#e9e8e2")
    draw = ImageDraw.Draw(tile)
    if picture is None:
        draw.multiline_text((8, 8), error.replace(": ", ":\n"), "#5d6a63", ImageFont.load_default())
        return tile
    scale = side_px / max(picture.shape[:2])
    size = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    at = (side_px - size[0]) // 2, (side_px - size[1]) // 2
    tile.paste(Image.fromarray(picture).resize(size, how), at)
    if box is not None:
        left, top, right, bottom = (round(edge * scale) + at[i % 2] for i, edge in enumerate(box))
        draw.rectangle((left, top, right - 1, bottom - 1), outline="#ffb000", width=2)
    return tile
