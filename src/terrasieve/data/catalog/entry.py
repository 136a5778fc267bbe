"""Entry: what the catalog says of one public data set, and what a reader gives of each of its images.

Every file of this package that is named after a data set holds one or two entries; ``copy`` compares a copy on disk
with them, ``curate.catalogued`` makes a manifest of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from terrasieve.data.catalog.boxes import Box

if TYPE_CHECKING:
    from terrasieve.data.catalog.copy import Copy
    from terrasieve.data.masks import MaskSettings

Kind = Literal["multiclass", "multilabel", "segmentation", "detection", "oriented detection", "pretraining"]


@dataclass(frozen=True, slots=True)
class Item:
    """One image that a copy of a data set ought to hold.

    Attributes:
        uri: path below the copy's folder with "/", or a derived image of such paths (``imagery.derived``).
        split: train, val, test, or None.
        label: class of a multi-class task.
        labels: classes of a multi-label task.
        mask: uri of the mask, likewise below the folder.
        boxes: objects; None = it is not known which there are.
        window: x, y, width, height in pixels of the file; None = all of it.
        known: further columns of ``curate.scan``'s entries: lon, lat, bounds and epsg, datetime, gsd_m, bands.
    """

    uri: str
    split: str | None = None
    label: str | None = None
    labels: tuple[str, ...] | None = None
    mask: str | None = None
    boxes: tuple[Box, ...] | None = None
    window: tuple[int, int, int, int] | None = None
    known: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Archive:
    """A file to download.

    Attributes:
        name: of the file.
        url: plain address, or "" where it is given out by hand or behind a form.
        md5: published checksum, or "".
    """

    name: str
    url: str = ""
    md5: str = ""


Reader = Callable[["Copy"], Iterable[Item]]


@dataclass(frozen=True)
class Entry:
    """A public data set.

    Attributes:
        name: on the command line.
        title: with the year.
        kind: of its task.
        summary: one sentence: what is to be told apart, in what imagery.
        classes: names, in the order of the numbers; () = none.
        bands: names in file order; () = as the files say.
        sensor, gsd_m, size_px: of the images; None = differs.
        licence: as its makers give it.
        citation: of the paper.
        page: where it is described and obtained.
        archives: what to download.
        layout: tree of the unpacked copy.
        marks: paths of which a copy's folder holds at least one; that is how the folder is found.
        reader: lists every image that a whole copy holds, whether it is there or not.
        variants: names of splits or class sets, the first the default; () = there is one.
        counts: images published, by variant or "", then by split; "" = all, with those that have no split.
        masks: what the masks' numbers mean, by variant or "".
        coordinates: where the place of an image comes from; "" = the source holds none.
        torchgeo: TorchGeo's class that fetches it in this layout, "" = none.
        note: what a user should know: what is unsure, what is decided here.
    """

    name: str
    title: str
    kind: Kind
    summary: str
    licence: str
    citation: str
    page: str
    layout: str
    marks: tuple[str, ...]
    reader: Reader
    classes: tuple[str, ...] = ()
    bands: tuple[str, ...] = ()
    sensor: str | None = None
    gsd_m: float | None = None
    size_px: int | None = None
    archives: tuple[Archive, ...] = ()
    variants: tuple[str, ...] = ()
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    masks: Mapping[str, MaskSettings] = field(default_factory=dict)
    coordinates: str = ""
    torchgeo: str = ""
    note: str = ""

    def masks_of(self, variant: str) -> MaskSettings | None:
        """Return what the numbers of a variant's masks mean; "" = the first variant's."""
        return self.masks.get(variant or (self.variants[0] if self.variants else ""), self.masks.get(""))

    def expected(self, variant: str) -> Mapping[str, int]:
        """Return the published number of images of a variant, by split or "" for all."""
        return self.counts.get(variant, self.counts.get("", {}))
