"""Listing: every file of every source, written to disk with what is known before it is opened.

First half of the scan of a curation (``collect`` is the second). Folders are walked in order of path, tars member by
member, CSV files line by line, so that 13 million files need memory for a few numbers each. A file's stamp (size and
time of change) tells a later run whether it is still the same. Source of the idea of a stamp: make(1), rsync(1).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from stat import S_ISREG
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, field_validator

from terrasieve import manifest
from terrasieve.curate.folders import Labels, Places, files_below
from terrasieve.curate.sources import EXTENSIONS, Entry, unlistable
from terrasieve.curate.stamps import number_of, stamp, status_of
from terrasieve.curate.tables import absolute, read_csv
from terrasieve.curate.tars import members
from terrasieve.errors import UserError
from terrasieve.imagery.headers import is_remote
from terrasieve.section import Section

CHUNK = 65_536
SPOOL = pa.schema(
    [
        ("source", pa.int16()),  # number of the source
        ("uri", pa.binary()),  # as the file system has it, which may not be UTF-8
        ("id", pa.uint64()),
        ("stamp", pa.int64()),  # of size and time of change; 0 where there is no local file
        ("file", pa.uint64()),  # the same for two names of one file
        ("known", pa.string()),  # JSON of an entry (``sources``) without its uri
    ]
)


class SourceSettings(Section):
    """A collection of images.

    Attributes:
        name: of the collection; the manifest's column ``source``.
        paths: folders, files, CSV files that name images, WebDataset tars; one or several.
        pattern: glob that a file's name, or its path inside its folder, has to match.
        leave_out: globs that neither may match, e.g. of masks.
        csv: adds what it says to the files found.
        labels: auto, folder or none: whether folders name classes (``folders``).
        licence: of the images, e.g. CC-BY-4.0; goes before what files say, as do the next three; a CSV goes before it.
        sensor: that took them.
        gsd_m: ground sample distance in metres.
        split: train, val or test.
        url: where the collection is from; for the datasheet.
        citation: how it is to be cited; for the datasheet.
    """

    name: str = Field(min_length=1)
    paths: tuple[str, ...] = Field(min_length=1)
    pattern: str | None = None
    leave_out: tuple[str, ...] = ()
    csv: str | None = None
    labels: Labels = "auto"
    licence: str | None = None
    sensor: str | None = None
    gsd_m: float | None = None
    split: Literal["train", "val", "test"] | None = None
    url: str | None = None
    citation: str | None = None

    @field_validator("paths", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


@dataclass
class Listing:
    """What the sources hold.

    Attributes:
        path: of the spool, a Parquet file of ``SPOOL``.
        rows: in it.
        rules: for each source, the function from a uri to what folders say of it.
        first: (rows,) the row that lists the same file first; the row itself where it does.
        key: hash of everything listed and of the sources' settings.
        ignored: files passed over, by extension.
        left_out: images that a pattern leaves out, by source.
        notes: what a person should know, one sentence each.
    """

    path: Path
    rows: int = 0
    rules: list[Callable[[str], dict[str, Any]]] = field(default_factory=list)
    first: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    key: str = ""
    ignored: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def say(self) -> list[str]:
        """Return the notes, those on what was passed over first."""
        several = [
            ("Not images by extension, passed over", {k or "no extension": n for k, n in self.ignored.items()}),
            ("Images left out by a source's pattern", self.left_out),
        ]
        words = (
            f"{what}: {', '.join(f'{name} ({n:,})' for name, n in Counter(counts).most_common(8))}."
            for what, counts in several
            if counts
        )
        return [*words, *self.notes]


def list_sources(sources: Sequence[SourceSettings], path: Path, tick: Callable[[int, int], None]) -> Listing:
    """List the files of all sources.

    Args:
        sources: in order of priority.
        path: of the spool to write.
        tick: told how many files are listed; the total is given as 0, for it is not known.

    Raises:
        UserError: a path that does not exist, a CSV that cannot be used, a source without images.
    """
    listing = Listing(path)
    digest = hashlib.blake2b(digest_size=16)
    files: list[np.ndarray] = []
    with pq.ParquetWriter(path, SPOOL, compression="zstd") as writer:
        for number, source in enumerate(sources):
            before = listing.rows
            digest.update(source.model_dump_json(exclude={"url", "citation"}).encode())
            for entries in _chunks(_entries(source, listing)):
                table = _spooled(number, entries)
                writer.write_table(table, row_group_size=CHUNK)
                files.append(table["file"].to_numpy())
                _digest(digest, table)
                listing.rows += len(table)
                tick(listing.rows, 0)
            if listing.rows == before:
                raise UserError(
                    f"Source {source.name!r}: no image under {', '.join(source.paths)}. Check its paths and pattern."
                )
    listing.first = _first(np.concatenate(files))
    listing.key = digest.hexdigest()
    return listing


def _entries(source: SourceSettings, listing: Listing) -> Iterator[Entry]:
    """Yield a source's entries; its rule is known when they are all out."""
    rules: list[tuple[str, Callable[[str], dict[str, Any]]]] = []
    joined = _joined(source, listing.notes)
    for path in map(Path, source.paths):
        if is_remote(str(path)) or not (path.exists() or path.is_symlink()):
            raise UserError(
                f"Source {source.name!r}: there is no file or folder {path}. Relative paths start at {Path.cwd()}."
            )
        if path.is_dir():
            places = Places(absolute(path))
            for entry in _below(absolute(path), source, listing):
                if "reason" not in entry and "offset" not in entry:
                    places.add(entry["uri"])
                yield entry | joined.pop(entry["uri"], {})
            rules.append((absolute(path).rstrip(os.sep) + os.sep, places.rule(source.labels, listing.notes)))
        elif path.suffix.lower() == ".csv":
            yield from read_csv(path, listing.notes)
        elif path.suffix.lower() == ".tar":
            yield from members(absolute(path), listing.ignored)
        else:
            entry = {"uri": absolute(path)}
            if source.labels == "folder":
                entry["label"] = path.absolute().parent.name
            yield entry | joined.pop(entry["uri"], {})
    if joined:
        listing.notes.append(f"{source.name}: {len(joined):,} rows of {source.csv} name files that were not found.")
    listing.rules.append(lambda uri: next((rule(uri) for top, rule in rules if uri.startswith(top)), {}))


def _joined(source: SourceSettings, notes: list[str]) -> dict[str, Entry]:
    if source.csv is None:
        return {}
    path = Path(source.csv)
    rows = read_csv(path, notes)
    found: dict[str, Entry] = {}
    for row in rows:
        uri = row.pop("uri")
        inside = os.path.relpath(uri, absolute(path.parent))
        places = [uri, *(absolute(Path(root) / inside) for root in source.paths)]
        found[next((place for place in places if Path(place).exists()), uri)] = row
    return found


def _below(top: str, source: SourceSettings, listing: Listing) -> Iterator[Entry]:
    denied: list[Entry] = []
    start = len(top.rstrip(os.sep)) + 1

    def note(error: OSError) -> None:
        denied.append({"uri": str(error.filename).rstrip(os.sep), "reason": unlistable(error)})

    for uri in files_below(top, note):
        inside = uri[start:]
        name = inside.rpartition(os.sep)[2]
        extension = os.path.splitext(name)[1].lower()  # noqa: PTH122 (a path object for each of millions is slow)
        if extension not in EXTENSIONS and extension != ".tar":
            listing.ignored[extension] += 1
        elif not _matches(source, inside, name):
            listing.left_out[source.name] += 1
        elif extension == ".tar":
            yield from members(uri, listing.ignored)
        else:
            yield {"uri": uri}
    yield from denied


def _matches(source: SourceSettings, inside: str, name: str) -> bool:
    def one(pattern: str) -> bool:
        return fnmatch(inside, pattern) or fnmatch(name, pattern)

    return (source.pattern is None or one(source.pattern)) and not any(map(one, source.leave_out))


def _chunks(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
    held: list[Entry] = []
    for entry in entries:
        held.append(entry)
        if len(held) == CHUNK:
            yield held
            held = []
    if held:
        yield held


def _spooled(number: int, entries: list[Entry]) -> pa.Table:
    stats: dict[str, os.stat_result | None] = {}
    uris, ids, stamps, files, known = [], [], [], [], []
    for entry in entries:
        uri = entry.pop("uri")
        offset = entry.pop("offset", 0)
        file = uri.partition("#name=")[0] if offset else uri
        if not offset:
            status = status_of(file)
        elif file not in stats:
            status = stats[file] = status_of(file)
        else:
            status = stats[file]
        if status is not None and not S_ISREG(status.st_mode):
            entry.setdefault("reason", "not_an_image: a pipe, a device or a folder, not a file")
        uris.append(os.fsencode(uri))
        ids.append(int(manifest.row_id(uri), 16))
        stamps.append(stamp(status))
        files.append(ids[-1] if status is None else number_of(f"{status.st_dev} {status.st_ino} {offset}"))
        known.append(json.dumps(entry, default=str, sort_keys=True) if entry else "")
    columns: list[Any] = [np.full(len(uris), number), uris, pa.array(ids, pa.uint64()), stamps, files, known]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, SPOOL, strict=True)], schema=SPOOL)


def _digest(digest: hashlib.blake2b, table: pa.Table) -> None:
    for name in ("id", "stamp", "file"):
        digest.update(table[name].to_numpy().tobytes())
    digest.update("\0".join(table["known"].to_pylist()).encode("utf-8", "surrogatepass"))


def _first(files: np.ndarray) -> np.ndarray:
    order = np.argsort(files, kind="stable")
    ordered = files[order]
    begins = np.append(True, ordered[1:] != ordered[:-1])
    first = np.empty(len(files), np.int64)
    first[order] = order[np.flatnonzero(begins)[np.cumsum(begins) - 1]]
    return first
