"""Maps: the predicted class of every pixel of an image of any size, as a GeoTIFF that lies where the image lies.

After a segmentation's ``predict``. The image is read in windows that overlap, and every pixel is taken from the window
in which it stands farthest from the edge, so a map is made and written part by part: memory does not grow with the
image's height, nor with its width by more than a strip of pixels.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from terrasieve import keyed
from terrasieve.batch import IGNORED, Batch
from terrasieve.data.augment import ImageSettings, normalise, resize, resize_valid
from terrasieve.data.images import Images
from terrasieve.errors import UserError
from terrasieve.files import written_aside
from terrasieve.imagery import raster, stretch
from terrasieve.train.picture import Colours, palette

Predict = Callable[[Batch, torch.Generator], Tensor]
Part = tuple[int, int, NDArray[np.uint8]]  # x, y, (h, w) class numbers, 255 without data


class Span(NamedTuple):
    """A window along one axis, and what of it becomes map: pixels of the image, ends exclusive."""

    start: int
    stop: int
    core_start: int
    core_stop: int


def spans(length: int, side: int, overlap: int) -> list[Span]:
    """Cover an axis with as few windows as overlap by at least ``overlap``, at even distances.

    Args:
        length: of the axis, in pixels.
        side: of a window; an axis shorter than that gets one window, which reaches beyond it.
        overlap: in [0, side).
    """
    count = 1 if length <= side else -(-(length - overlap) // (side - overlap))
    starts = [index * (length - side) // (count - 1) for index in range(count)] if count > 1 else [0]
    cuts = [0, *((after + before + side) // 2 for before, after in pairwise(starts)), length]
    return [Span(start, start + side, cuts[i], cuts[i + 1]) for i, start in enumerate(starts)]


def predicted_parts(
    predict: Predict,
    images: Images,
    row: int,
    settings: ImageSettings,
    *,
    window_px: tuple[int, int] | None = None,
    overlap: float = 0.25,
    batch_size: int = 8,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[Part]:
    """Predict an image part by part; the parts cover it and do not overlap.

    Args:
        predict: normalised batch, generator -> logits (B, C, H, W), e.g. ``RUPerNet.predict`` in evaluation mode.
        images, row: which image.
        settings: size, mean and std that the method was trained with.
        window_px: height and width of a window in pixels of the image, resampled to the size that the method sees;
            None = that size, pixel by pixel. Images smaller than a window are filled up with no-data.
        overlap: share of a window's side, in [0, 1).
        batch_size: windows at a time.
        seed: of what is drawn in prediction, as random dropping does.
        device: where ``predict`` computes.

    Raises:
        UserError: settings without mean and std, or an overlap out of range.
        UnreadableImage: if the image cannot be decoded.
    """
    if settings.mean is None or settings.std is None:
        raise UserError("image.mean and image.std are not known; take the settings from the run's recipe.yaml.")
    if not 0 <= overlap < 1:
        raise UserError(f"overlap: {overlap} of a window; choose a share in [0, 1).")
    mean_C, std_C = (torch.tensor(values, device=device) for values in (settings.mean, settings.std))
    side = window_px or settings.shape_px
    width, height = (int(v) for v in images.windows[row, 2:])
    across = spans(width, side[1], int(overlap * side[1]))
    for number, down in enumerate(spans(height, side[0], int(overlap * side[0]))):
        # A strip at once, since a JPEG has no random access: every read decodes it all.
        strip = images.read(row, (0, down.start, width, min(down.stop, height) - down.start))
        valid = strip.valid if strip.valid is not None else np.ones(strip.array.shape[1:], np.bool_)
        for first in range(0, len(across), batch_size):
            some = across[first : first + batch_size]
            batch = _batch(strip.array, valid, some, side, settings.shape_px, images, row)
            ready = normalise(batch.to(torch.device(device)), mean_C, std_C)
            draw = keyed.generator(seed, "map", row, number, first, device=device)
            with torch.inference_mode():
                logits = predict(ready, draw).float()
                if tuple(logits.shape[-2:]) != side:
                    logits = F.interpolate(logits, size=side, mode="bilinear", align_corners=False)
                classes_BHW = logits.argmax(dim=1).to(torch.uint8).cpu().numpy()
            rows = slice(down.core_start - down.start, down.core_stop - down.start)
            for span, classes_HW in zip(some, classes_BHW, strict=True):
                core = slice(span.core_start, span.core_stop)
                part = classes_HW[rows, span.core_start - span.start : span.core_stop - span.start]
                yield span.core_start, down.core_start, np.where(valid[rows, core], part, np.uint8(IGNORED))


def _batch(
    array: NDArray[np.generic],
    valid: NDArray[np.bool_],
    across: Sequence[Span],
    side: tuple[int, int],
    shape_px: tuple[int, int],
    images: Images,
    row: int,
) -> Batch:
    """Cut windows out of a strip and bring them to the size that the method sees."""
    cut, real = [], []
    for span in across:
        pixels = array[:, :, span.start : span.stop]
        missing = ((0, side[0] - pixels.shape[1]), (0, side[1] - pixels.shape[2]))
        known = np.pad(valid[:, span.start : span.stop], missing)
        pixels = np.where(known, np.pad(pixels, ((0, 0), *missing)), pixels.dtype.type(0))  # NaN would spread
        cut.append(resize(torch.from_numpy(pixels), *shape_px))
        real.append(resize_valid(torch.from_numpy(known), *shape_px))
    lon, lat, time = (torch.full((len(cut),), float(v[row])).double() for v in (images.lon, images.lat, images.time))
    valid_BHW = torch.stack(real)
    return Batch(torch.stack(cut), lon, lat, time, torch.full((len(cut),), row), None if valid_BHW.all() else valid_BHW)


def whole(parts: Iterator[Part], height: int, width: int) -> NDArray[np.uint8]:
    """Put the parts of a map together: (height, width) uint8."""
    classes_HW = np.full((height, width), IGNORED, np.uint8)
    for x, y, part in parts:
        classes_HW[y : y + part.shape[0], x : x + part.shape[1]] = part
    return classes_HW


def write_geotiff(
    parts: Iterator[Part], images: Images, row: int, classes: Sequence[str], path: Path, colours: Colours | None = None
) -> None:
    """Write a map as a GeoTIFF of one uint8 band: class numbers, 255 = no data, a colour table, the classes' names.

    It lies where the row's image, or its window of one, lies; an image without coordinates gives a map without. The
    file appears under its name when it is whole.

    Args:
        parts: from :func:`predicted_parts`.
        images, row: which image.
        classes: names; as Earth's masks have them, in the tag ``classes``, with commas between.
        path: to write.
        colours: red, green, blue of each class, 0 to 255; None = :func:`palette`.
    """
    import rasterio.windows
    from rasterio.windows import Window

    x, y, width, height = (int(v) for v in images.windows[row])
    header = raster.header(images.uris[row])
    place = {}
    if header.crs is not None and header.transform is not None:
        where = rasterio.windows.transform(Window(x, y, width, height), rasterio.Affine(*header.transform))
        place = {"crs": rasterio.crs.CRS.from_string(header.crs), "transform": where}
    shape = {"width": width, "height": height, "count": 1, "dtype": "uint8", "nodata": IGNORED}
    layout = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "bigtiff": "if_safer"}
    with written_aside(path) as aside, rasterio.open(aside, "w", driver="GTiff", **shape, **layout, **place) as file:
        chosen = palette(len(classes)) if colours is None else colours
        file.write_colormap(1, {number: (*colour, 255) for number, colour in enumerate(chosen)} | {IGNORED: (0,) * 4})
        file.set_band_description(1, "class")
        file.update_tags(classes=",".join(classes))
        for left, top, part in parts:
            file.write(part, 1, window=Window(left, top, part.shape[1], part.shape[0]))


def side_by_side(
    image_CHW: NDArray[np.generic],
    maps: Sequence[NDArray[np.uint8]],
    classes: Sequence[str],
    bands: tuple[str, ...],
    *,
    valid: NDArray[np.bool_] | None = None,
    colours: Colours | None = None,
    largest_px: int = 384,
) -> bytes:
    """Draw an image beside maps of it, e.g. truth and prediction, with a legend of the classes that they hold.

    Args:
        image_CHW: digital numbers; stretched between the 2nd and the 98th percentile (``imagery.stretch``).
        maps: (H, W) uint8 class numbers; 255 is drawn black.
        classes: names.
        bands: names, to find red, green and blue.
        valid: (H, W), False where there is no data.
        colours: of the classes; None = :func:`palette`.
        largest_px: a panel's longer side is at most this; a small image is enlarged by a whole factor.

    Returns:
        A PNG.
    """
    from PIL import Image, ImageDraw, ImageFont

    table = np.zeros((IGNORED + 1, 3), np.uint8)
    table[: len(classes)] = (palette(len(classes)) if colours is None else colours)[: len(classes)]
    height, width = image_CHW.shape[1:]
    factor = largest_px / max(height, width)
    factor = factor if factor < 1 else int(factor)  # small images grow by a whole factor
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    rgb = image_CHW[stretch.display_bands(bands)]
    shown = stretch.stretched(rgb, valid, stretch.limits([rgb], [valid], tail=0.02), no_data=0)
    panels = [Image.fromarray(stretch.to_bytes(shown)).resize(size, Image.Resampling.BOX)]
    panels += [Image.fromarray(table[map_HW]).resize(size, Image.Resampling.NEAREST) for map_HW in maps]
    present = sorted({int(number) for map_HW in maps for number in np.unique(map_HW)} - {IGNORED})
    gap, line = 4, 16
    font = ImageFont.load_default()
    column = 28 + math.ceil(max((font.getlength(classes[number]) for number in present), default=0))
    sheet_width = max(len(panels) * (size[0] + gap) - gap, column)
    columns = sheet_width // column
    sheet = Image.new("RGB", (sheet_width, size[1] + gap + line * -(-len(present) // columns)), "white")
    for number, panel in enumerate(panels):
        sheet.paste(panel, (number * (size[0] + gap), 0))
    draw = ImageDraw.Draw(sheet)
    for place, number in enumerate(present):
        left, top = place % columns * column, size[1] + gap + place // columns * line
        draw.rectangle((left, top + 2, left + 11, top + 13), fill=tuple(table[number].tolist()))
        draw.text((left + 16, top + 2), classes[number], fill="black", font=font)
    stream = io.BytesIO()
    sheet.save(stream, "PNG", optimize=True)
    return stream.getvalue()
