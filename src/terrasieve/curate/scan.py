"""Scan: folders, files and CSV files into the first manifest; every file becomes a row, broken ones with a reason.

First step of curation: ``sources`` lists the files, worker processes read their headers (``imagery.headers``), this
file puts the rows in order and counts them. Rows are sorted by path whatever the number of workers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import shapely

from terrasieve import manifest
from terrasieve.curate.doubts import Doubts
from terrasieve.curate.engine import Engine, Local, Lost
from terrasieve.curate.folders import Labels
from terrasieve.curate.sources import Entry, Gathered, gather
from terrasieve.imagery import geo
from terrasieve.imagery.formats import MAX_PIXELS
from terrasieve.imagery.headers import NO_CRS, Header, header
from terrasieve.imagery.raster import read
from terrasieve.imagery.unreadable import UnreadableImage

Verify = Literal["header", "ends", "decode"]
_PART = 128  # files per task: small enough to share out, large enough that passing them costs nothing
_ALONE = 1024  # fewer files are read in this process, in less time than others take to start
_KILLS = "unreadable: reading it ends the process"


@dataclass
class Summary:
    """What a scan found, counted.

    Attributes:
        files: rows in the table.
        kept: usable ones.
        reasons: dropped rows by code ("truncated", ...).
        formats, dtypes, sizes, bands, labels, splits: kept rows by "jpeg", "uint8", "256 x 256", number of bands, ...
        placed: kept rows with coordinates.
        ignored: files passed over without a row, by extension.
        notes: what a person should know, one sentence each.
    """

    files: int = 0
    kept: int = 0
    placed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    dtypes: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    bands: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def count(self, row: dict[str, Any], format_name: str) -> None:
        """Add a row."""
        self.files += 1
        if not row["keep"]:
            self.reasons[row["reason"].partition(":")[0]] += 1
            return
        self.kept += 1
        self.placed += row.get("lon") is not None
        self.formats[format_name] += 1
        self.dtypes[row["dtype"]] += 1
        self.sizes[f"{row['width']} x {row['height']}"] += 1
        self.bands[", ".join(row["bands"])] += 1
        self.splits.update([row["split"]] if row.get("split") else [])
        self.labels.update([row["label"]] if row.get("label") else row.get("labels") or [])

    def lines(self) -> list[str]:
        """Return the summary as lines of plain text."""
        text = [f"{self.files:,} files, {self.kept:,} usable, {self.placed:,} with coordinates"]
        for name in ("formats", "dtypes", "bands", "sizes", "labels", "splits"):
            counts: Counter[str] = getattr(self, name)
            if counts:
                text.append(f"{name}: {_several(counts, between='; ' if name == 'bands' else ', ')}")
        text += [f"dropped: {n:,} {code}" for code, n in self.reasons.most_common()]
        if self.ignored:
            endings = Counter({extension or "no extension": n for extension, n in self.ignored.items()})
            text.append(f"not images by extension, passed over: {_several(endings)}")
        return text + self.notes


@dataclass(frozen=True)
class ScanResult:
    """A manifest table (``manifest.SCHEMA``) and its summary."""

    table: pa.Table
    summary: Summary


def scan(
    paths: Sequence[str | Path] | str | Path,
    *,
    pattern: str | None = None,
    labels: Labels = "auto",
    csv: str | Path | None = None,
    verify: Verify = "ends",
    workers: int | None = None,
    all_files: bool = False,
    max_pixels: int = MAX_PIXELS,
    on_file: Callable[[int, int], None] | None = None,
) -> ScanResult:
    """Index images.

    Args:
        paths: folders (searched whole, hidden files left out), files, and CSV files that name images (``tables``).
        pattern: glob that a file's name, or its path inside its folder, has to match.
        labels: "auto" = the folder's name, where all images lie in two or more class folders of two or more images
            each; "folder" = always the name of the folder that holds the image; "none". Folders named train, val,
            test give the split.
        csv: adds what it says to the files found; what a CSV says goes before what a file says.
        verify: "header" believes the file's first bytes, "ends" also finds cut files without decoding, "decode"
            decodes every pixel.
        workers: processes; None = one per core that this process may use.
        all_files: make rows of files whose extension is no image's, too.
        max_pixels: width x height beyond which a header is not believed.
        on_file: called with the number of files done and their total.

    Returns:
        The table, sorted by uri, and the counts.

    Raises:
        UserError: a path or a CSV that cannot be used, or no image found.
    """
    paths = [paths] if isinstance(paths, str | Path) else paths
    gathered = gather(paths, pattern=pattern, labels=labels, csv=csv, all_files=all_files)
    return scan_entries(gathered, verify=verify, workers=workers, max_pixels=max_pixels, on_file=on_file)


def scan_entries(
    gathered: Gathered,
    *,
    verify: Verify = "ends",
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
    on_file: Callable[[int, int], None] | None = None,
) -> ScanResult:
    """Index what is listed already, in the order given; for the other arguments see :func:`scan`."""
    summary = Summary(ignored=gathered.ignored, notes=gathered.notes)
    found = read_headers(gathered.entries, Local(workers), verify=verify, max_pixels=max_pixels, on_file=on_file)
    doubts = Doubts()
    for row, known in found:
        summary.count(row, known.format)
        doubts.add(row["uri"], known.doubts)
    table = manifest.rows_to_table([row for row, _ in found])
    summary.notes += doubts.lines(table)
    return ScanResult(table, summary)


class Found(NamedTuple):
    """What is known of a file beside its row: its format ("" without a readable header), and doubts in words."""

    format: str = ""
    doubts: tuple[str, ...] = ()


Inspected = tuple[dict[str, Any], Found]


def read_headers(
    entries: Sequence[Entry],
    engine: Engine,
    *,
    verify: Verify,
    max_pixels: int,
    max_tiled_pixels: int | None = None,
    on_file: Callable[[int, int], None] | None = None,
) -> list[Inspected]:
    """Return each entry's manifest row and what else was found, in order, whatever the number of workers.

    Files are read part by part; a part of which one ends its process (a decoder that crashes) again file by file, so
    that only that one is lost. Arguments are those of ``scan``.
    """
    inspect = partial(inspect_files, verify=verify, max_pixels=max_pixels, max_tiled_pixels=max_tiled_pixels)
    size, engine = (1, Local(1)) if len(entries) < _ALONE else (_PART, engine)
    parts = [entries[at : at + size] for at in range(0, len(entries), size)]
    found: list[list[Inspected]] = [[] for _ in parts]
    done = 0
    for number, result in engine.run(inspect, parts):
        found[number] = _one_by_one(parts[number], inspect, engine) if isinstance(result, Lost) else result
        done += len(parts[number])
        if on_file is not None:
            on_file(done, len(entries))
    return [pair for part in found for pair in part]


def _one_by_one(entries: Sequence[Entry], inspect: Callable[..., list[Inspected]], engine: Engine) -> list[Inspected]:
    found: dict[int, Inspected] = {}
    for number, result in engine.run(inspect, [[entry] for entry in entries]):
        killed = [entries[number] | {"reason": _KILLS}]
        [found[number]] = inspect(killed) if isinstance(result, Lost) else result
    return [found[number] for number in range(len(entries))]


def inspect_files(
    entries: list[Entry], verify: Verify, max_pixels: int, max_tiled_pixels: int | None = None
) -> list[Inspected]:
    """Return each entry's manifest row and what else was found."""
    return [_inspect(entry, verify, max_pixels, max_tiled_pixels) for entry in entries]


def _inspect(entry: Entry, verify: Verify, max_pixels: int, max_tiled_pixels: int | None) -> Inspected:
    row = _row(entry)
    if row.get("reason"):
        return row | {"keep": False}, Found()
    try:
        found = header(entry["uri"], ends=verify != "header", max_pixels=max_pixels, max_tiled_pixels=max_tiled_pixels)
        described = _described(row, entry, found)
        if verify == "decode":
            valid = read(entry["uri"], max_pixels=max_pixels).valid
            if valid is not None and not valid.any():
                raise UnreadableImage(entry["uri"], "no_data", "not one pixel is real")
    except UnreadableImage as error:
        return row | {"keep": False, "reason": error.reason}, Found()
    homeless = "bounds" in entry and described["crs"] is None
    doubts = dict.fromkeys([*found.doubts, NO_CRS] if homeless else found.doubts)  # each once
    return described | {"keep": True, "reason": ""}, Found(found.format, tuple(doubts))


def _row(entry: Entry) -> dict[str, Any]:
    row = {name: value for name, value in entry.items() if name not in ("bounds", "epsg")}
    try:
        row["uri"].encode()
    except UnicodeEncodeError:
        row["uri"] = row["uri"].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        row["reason"] = "unreadable: the file's name is not UTF-8; rename it"
    return row | {"id": manifest.row_id(entry["uri"])}


def _described(row: dict[str, Any], entry: Entry, found: Header) -> dict[str, Any]:
    """Join a header and an entry; what the entry says goes first, and a place without an outline is a point."""
    if len(row.get("bands") or found.bands) != len(found.bands):
        named = f"{len(row['bands'])} bands ({', '.join(row['bands'])})"
        raise UnreadableImage(entry["uri"], "other_bands", f"{named} are expected, the file has {len(found.bands)}")
    size = found.width, found.height
    transform, crs = found.transform, found.crs
    if transform is None and "bounds" in entry and "epsg" in entry:
        left, bottom, right, top = entry["bounds"]
        transform = ((right - left) / size[0], 0.0, left, 0.0, (bottom - top) / size[1], top)
        crs = f"EPSG:{entry['epsg']}"
    outline = middle = None
    gsd_m = found.gsd_m
    if transform is not None and crs is not None:
        outline, middle = geo.footprint(transform, crs, *size), geo.centre(transform, crs, *size)
        gsd_m = gsd_m or geo.gsd_m(transform, crs, *size)
    lon, lat = middle if middle is not None else (found.lon, found.lat)
    if "lon" in row and "lat" in row:
        lon, lat = row["lon"], row["lat"]
    if outline is None and lon is not None and lat is not None:
        outline = shapely.Point(lon, lat)
    described = {
        "width": found.width,
        "height": found.height,
        "bands": list(found.bands),
        "dtype": found.dtype,
        "nodata": found.nodata,
        "crs": crs,
        "datetime": found.datetime,
        "gsd_m": gsd_m,
    }
    geometry = None if outline is None else shapely.to_wkb(outline)
    return described | row | {"lon": lon, "lat": lat, "geometry": geometry}


def _several(counts: Counter[str], most: int = 8, between: str = ", ") -> str:
    text = between.join(f"{name} ({n:,})" for name, n in counts.most_common(most))
    return text if len(counts) <= most else f"{text}{between}and {len(counts) - most:,} more"
