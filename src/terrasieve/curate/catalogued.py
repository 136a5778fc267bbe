"""Catalogued: a copy of a public data set, as ``data.catalog`` describes it, made into a manifest.

After ``scan``, whose rows it asks for; ``evaluate.tasks``, ``evaluate.parts`` and ``terrasieve datasets`` call it. What
the copy lacks is counted and listed, never passed over in silence.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import shapely

from terrasieve import manifest
from terrasieve.curate.scan import scan_entries
from terrasieve.curate.sources import Gathered
from terrasieve.data import catalog
from terrasieve.data.catalog import boxes, copy
from terrasieve.data.catalog.entry import Entry, Item
from terrasieve.errors import UserError
from terrasieve.imagery import geo, raster


@dataclass(frozen=True)
class Found:
    """The images of a data set that are there.

    Attributes:
        entry: of the catalog.
        variant: of the entry, "" = it has none.
        root: folder of the copy.
        items: what the reader says of each image.
        entries: for ``scan``: the same with absolute uris, in manifest columns.
        masks: uri of each image's mask.
        notes: what the copy lacks, one sentence each.
    """

    entry: Entry
    variant: str
    root: Path
    items: tuple[Item, ...]
    entries: tuple[dict[str, Any], ...]
    masks: dict[str, str]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the data set with its variant."""
        return f"{self.entry.name}/{self.variant}" if self.variant else self.entry.name


def gather(spec: str) -> Found:
    """List the images of ``catalog:NAME[/VARIANT][@PATH]`` without opening one.

    Raises:
        UserError: no such data set or folder, or not one image is there; the message is the diagnosis.
    """
    entry, variant, path = catalog.parse(spec)
    return gathered(entry, copy.opened(entry, path, variant))


def gathered(entry: Entry, held: copy.Copy) -> Found:
    """List the images of a copy; see :func:`gather`."""
    found = copy.look(entry, held)
    return of_items(entry, held, found, tuple(copy.diagnosis(entry, held, found)))


def of_items(entry: Entry, held: copy.Copy, found: copy.Present, notes: tuple[str, ...]) -> Found:
    """Return the images of a copy that was looked at; errors as of :func:`gather`."""
    if not found.items:
        listed = "\n".join(f"- {line}" for line in notes)
        raise UserError(
            f"{held.root} holds no image of {entry.title} that is whole:\n{listed}\nExpected:\n{entry.layout.strip()}"
        )
    rows = [_columns(entry, held, item) for item in found.items]
    masks = {row["uri"]: held.absolute(item.mask) for row, item in zip(rows, found.items, strict=True) if item.mask}
    return Found(entry, held.variant, held.root, tuple(found.items), tuple(rows), masks, notes)


def labelled(found: Found) -> list[tuple[str, tuple[str, ...], str | None]]:
    """Return uri, classes and split of every image.

    Raises:
        UserError: the data set has no class of each image.
    """
    if found.entry.kind not in ("multiclass", "multilabel"):
        raise UserError(
            f"{found.entry.title} is a data set for {found.entry.kind}, without a class of each image. "
            f"Take it for terrasieve adapt, or write its manifest: terrasieve datasets {found.name} -o FILE.parquet"
        )
    return [
        (row["uri"], item.labels if item.labels is not None else (str(item.label),), item.split)
        for row, item in zip(found.entries, found.items, strict=True)
        if item.labels is not None or item.label is not None
    ]


def table_of(found: Found, workers: int | None = None, on_file: Callable[[int, int], None] | None = None) -> pa.Table:
    """Return the manifest of a data set: every image's header is read.

    Args:
        found: the images.
        workers: processes; None = one per core.
        on_file: called with the number of images done and their total.
    """
    files = {row["uri"]: row for row in found.entries}  # several rows may be windows of one file
    listed = Gathered(entries=[dict(row) for row in files.values()])
    table = scan_entries(listed, verify="header", workers=workers, on_file=on_file).table
    if len(files) == len(found.items) and all(item.window is None for item in found.items):
        return table
    rows = {row["uri"]: row for row in table.to_pylist()}
    windows = defaultdict(list)
    for row, item in zip(found.entries, found.items, strict=True):
        windows[row["uri"]].append((row, item.window))
    return manifest.rows_to_table(cut for uri, own in windows.items() for cut in _cut(rows[uri], own))


def boxes_of(found: Found, table: pa.Table) -> pa.Table | None:
    """Return the boxes of a manifest's kept rows (``data.catalog.boxes``); None = the data set has none."""
    if not any(item.boxes is not None for item in found.items):
        return None
    ids = {
        uri: row
        for uri, row, keep in zip(*(table[name].to_pylist() for name in ("uri", "id", "keep")), strict=True)
        if keep
    }
    return boxes.to_table(
        (ids[row["uri"]], row["uri"], box)
        for row, item in zip(found.entries, found.items, strict=True)
        if row["uri"] in ids
        for box in item.boxes or ()
    )


def _cut(
    whole: dict[str, Any], own: list[tuple[dict[str, Any], tuple[int, int, int, int] | None]]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file's windows, each with its own place, label and split."""
    if not whole["keep"]:
        yield whole
        return
    header = raster.header(whole["uri"])
    for row, window in own:
        given = {name: row.get(name) for name in ("label", "labels", "split")}
        if window is None:
            yield {**whole, **given}
            continue
        place: dict[str, Any] = {"geometry": None, "lon": None, "lat": None}
        if header.transform is not None and header.crs is not None:
            outlines, centres = geo.window_places(header.transform, header.crs, np.array([window]))
            outline = outlines[0]
            place["geometry"] = None if outline is None else shapely.to_wkb(outline)
            if np.isfinite(centres[0]).all():
                place["lon"], place["lat"] = (float(value) for value in centres[0])
        size = {"window": list(window), "width": window[2], "height": window[3]}
        yield {**whole, **given, **place, **size, "id": manifest.row_id(whole["uri"], window)}


def _columns(entry: Entry, held: copy.Copy, item: Item) -> dict[str, Any]:
    own = {
        "uri": held.absolute(item.uri),
        "split": item.split,
        "label": item.label,
        "labels": None if item.labels is None else list(item.labels),
        "source": entry.title,
        "licence": entry.licence,
        "sensor": entry.sensor,
        "gsd_m": entry.gsd_m,
        "bands": list(entry.bands) or None,
        **item.known,
    }
    return {name: value for name, value in own.items() if value is not None}
