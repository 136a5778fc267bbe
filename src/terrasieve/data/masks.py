"""Masks: the class of every pixel of an image, from a file beside it.

Between ``images`` and ``samples``. Which file belongs to which image, and what its numbers mean, is said once, by
``MaskSettings``; all files are looked at before anything starts, and a number that is not accounted for is an error,
never a class. Only pixels count: a mask is taken to lie on its image pixel by pixel, whatever CRS it declares (some of
FLAIR's declare a broken one).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from terrasieve import settings_file
from terrasieve.batch import IGNORED
from terrasieve.data.images import Images
from terrasieve.errors import UserError
from terrasieve.imagery.unreadable import UnreadableImage
from terrasieve.section import Section


class MaskSettings(Section):
    """Where the mask of an image is, and what its numbers mean.

    Attributes:
        replace: text in the image's uri, at its last occurrence, and what stands there in its mask's: ["image.tif",
            "mask.tif"], ["images/", "masks/"].
        suffix: ending of the masks' names where it is not the images' one: ".png".
        classes: names, in the order of the class numbers.
        values: the number in the file of each class; None = 0, 1, 2, ...
        ignore: numbers in the file that are not scored. A mask's declared no-data is one of them unless it is a class.
    """

    replace: tuple[str, str]
    suffix: str | None = None
    classes: tuple[str, ...]
    values: tuple[int, ...] | None = None
    ignore: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not 2 <= len(self.classes) <= IGNORED:
            raise ValueError(f"classes: {len(self.classes)} names; a segmentation has 2 to {IGNORED} classes")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: a name is given twice; to make one class of two numbers is not possible")
        if self.values is not None and len(self.values) != len(self.classes):
            raise ValueError(f"values: {len(self.values)} numbers for {len(self.classes)} classes; give one for each")
        twice = [v for v in self.numbers if self.numbers.count(v) > 1 or v in self.ignore]
        if twice:
            raise ValueError(f"values: {twice[0]} stands for two classes, or for one and in ignore")
        if not self.replace[0]:
            raise ValueError("replace: the text to be replaced is empty")
        return self

    @property
    def numbers(self) -> tuple[int, ...]:
        """The number in the file of each class."""
        return self.values or tuple(range(len(self.classes)))

    def uri_of(self, image_uri: str) -> str | None:
        """Return the uri of an image's mask, or None if the image's does not hold the text to replace."""
        before, found, after = image_uri.rpartition(self.replace[0])
        if not found:
            return None
        uri = before + self.replace[1] + after
        if self.suffix is not None:
            stem, dot, ending = uri.rpartition(".")
            uri = (stem if dot and "/" not in ending else uri) + self.suffix
        return uri


def masks_of(path: Path) -> MaskSettings:
    """Read mask settings from YAML: a recipe of ``adapt`` (its task.masks), a section ``masks``, or their keys alone.

    Raises:
        UserError: no such file, not YAML, or a mistake in it.
    """
    content = settings_file.read(path)
    for section in ("task", "masks"):
        content = content[section] if isinstance(content.get(section), dict) else content
    return settings_file.validate(content, str(path), MaskSettings)


@dataclass(frozen=True)
class Masks:
    """Masks of the rows of ``Images``, found and looked at by :func:`find_masks`.

    Attributes:
        uris: file of each row.
        windows: (n, 4) int32, x, y, width, height of each row in its file.
        settings: what the numbers mean.
    """

    uris: list[str]
    windows: np.ndarray
    settings: MaskSettings

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the class numbers."""
        return self.settings.classes

    def __len__(self) -> int:
        return len(self.uris)

    def read(self, row: int, crop: tuple[int, int, int, int] | None = None) -> NDArray[np.uint8]:
        """Read a row's mask, or a crop (x, y, width, height) of it: (h, w) uint8, class number, 255 where ignored.

        Raises:
            UserError: a number that is neither a class's nor ignored.
            UnreadableImage: if the file cannot be decoded.
        """
        from terrasieve.imagery import raster  # a machine without rasterio trains on pixels in memory

        x, y, width, height = (int(v) for v in self.windows[row])
        crop_x, crop_y, width, height = crop or (0, 0, width, height)
        pixels = raster.read(self.uris[row], (x + crop_x, y + crop_y, width, height), (0,))
        return self._numbered(self.uris[row], pixels.array[0], pixels.valid)

    def count(self, rows: Iterable[int] | None = None, on_mask: Callable[[], None] | None = None) -> np.ndarray:
        """Count the pixels of each class, (C,) int64; reads the masks, and so finds every number out of range.

        Args:
            rows: of which; None = all.
            on_mask: called after each mask, for a progress bar.
        """
        counts = np.zeros(IGNORED + 1, np.int64)
        for row in range(len(self)) if rows is None else rows:
            counts += np.bincount(self.read(row).ravel(), minlength=IGNORED + 1)
            if on_mask:
                on_mask()
        return counts[: len(self.classes)]

    def take(self, rows: np.ndarray) -> Masks:
        """Return some of the rows, in the order given: (k,) int64."""
        return Masks([self.uris[row] for row in rows], self.windows[rows], self.settings)

    def _numbered(self, uri: str, raw: NDArray[Any], valid: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
        """Turn the numbers of the file into class numbers."""
        settings = self.settings
        values = np.array([*settings.numbers, *settings.ignore])
        numbers = np.array([*range(len(settings.classes)), *(IGNORED for _ in settings.ignore)], np.uint8)
        order = values.argsort()
        values, numbers = values[order], numbers[order]
        if raw.dtype == np.uint8 and values[0] >= 0 and values[-1] <= 255:
            known = np.zeros(256, np.bool_)
            table = np.zeros(256, np.uint8)
            known[values], table[values] = True, numbers
            found, mask = known[raw], table[raw]
        else:
            place = np.searchsorted(values, raw).clip(max=len(values) - 1)
            found, mask = values[place] == raw, numbers[place]
        if not found.all():
            no_data = ~found if valid is None else ~found & ~valid
            if valid is None or not (found | no_data).all():
                raise UserError(_foreign(uri, raw[~found if valid is None else ~found & valid], settings))
            mask = np.where(no_data, np.uint8(IGNORED), mask)
        return np.ascontiguousarray(mask)


def find_masks(images: Images, settings: MaskSettings) -> Masks:
    """Find the mask of every image, and look at its header.

    Args:
        images: rows of a manifest.
        settings: where masks are and what their numbers mean.

    Raises:
        UserError: an image without a mask, or a mask of another size, of several bands or of colours; names the file.
    """
    from terrasieve.imagery import raster

    windows = images.windows.copy()
    uris: list[str] = []
    sizes: dict[str, tuple[int, int]] = {}  # of masks
    wholes: dict[str, tuple[int, int]] = {}  # of files that rows are windows of
    for row, uri in enumerate(images.uris):
        mask_uri = settings.uri_of(uri)
        if mask_uri is None or mask_uri == uri:
            raise UserError(
                f"task.masks.replace: {settings.replace[0]!r} is to become {settings.replace[1]!r} to find an image's "
                f"mask, but that gives none for {uri}. Replace what every image's name has, or index the images alone "
                "(terrasieve index FOLDER --pattern '*image.tif')."
            )
        uris.append(mask_uri)
        if mask_uri not in sizes:
            sizes[mask_uri] = _size(mask_uri, uri)
        if images.whole[row]:
            width, height = int(windows[row, 2]), int(windows[row, 3])
        else:
            if uri not in wholes:
                header = raster.header(uri)
                wholes[uri] = (header.width, header.height)
            width, height = wholes[uri]
        if sizes[mask_uri] != (width, height):
            raise UserError(
                f"The mask {mask_uri} has {sizes[mask_uri][0]} x {sizes[mask_uri][1]} pixels, its image {uri} "
                f"{width} x {height}. A mask has one pixel for each of the image's: resample it (nearest), or leave "
                "the image out."
            )
    return Masks(uris, windows, settings)


def _size(mask_uri: str, uri: str) -> tuple[int, int]:
    from terrasieve.imagery import raster

    try:
        header = raster.header(mask_uri)
    except UnreadableImage as error:
        raise UserError(
            f"The image {uri} has no usable mask: {error}. Mend task.masks.replace, or leave the image out of the "
            "manifest."
        ) from error
    if len(header.bands) != 1:
        raise UserError(
            f"The mask {mask_uri} has {len(header.bands)} bands ({', '.join(header.bands)}); one band of class numbers "
            "is needed. Turn colours into numbers first."
        )
    return header.width, header.height


def _foreign(uri: str, raw: NDArray[Any], settings: MaskSettings) -> str:
    values, counts = np.unique(raw, return_counts=True)
    listed = ", ".join(f"{value} ({count} pixels)" for value, count in list(zip(values, counts, strict=True))[:5])
    classes = ", ".join(f"{v} {name}" for v, name in zip(settings.numbers, settings.classes, strict=True))
    return (
        f"The mask {uri} holds {listed}, which is no class and not ignored. Classes: {classes}; ignored: "
        f"{', '.join(map(str, settings.ignore)) or 'none'}. Mend task.masks.classes, values or ignore."
    )
