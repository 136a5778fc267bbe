"""Sources: which files are to be indexed, and what folders and CSV files say about them.

First step of ``scan``: turns folders, single files and CSV files into entries, rows that hold a uri and whatever is
known before the file is opened (label, split, place, time). Entries come sorted by uri, each uri once.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePath
from typing import Any

from terrasieve.curate.folders import Labels, Places, files_below
from terrasieve.curate.tables import absolute, read_csv
from terrasieve.errors import UserError
from terrasieve.imagery import derived

EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".tif", ".tiff", ".gtiff", ".jp2", ".j2k", ".webp", ".bmp"})
Entry = dict[str, Any]  # manifest columns known so far; "reason" when the file is already known to be unusable


@dataclass
class Gathered:
    """What there is to index.

    Attributes:
        entries: sorted by uri.
        ignored: files passed over, by extension ("" = none).
        notes: what a person should know, one sentence each.
    """

    entries: list[Entry] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def gather(
    paths: Sequence[str | Path],
    *,
    pattern: str | None = None,
    labels: Labels = "auto",
    csv: str | Path | None = None,
    all_files: bool = False,
) -> Gathered:
    """List what is to be indexed (see ``scan.scan`` for the arguments).

    Raises:
        UserError: a path that does not exist, a CSV that cannot be used, nothing found.
    """
    gathered = Gathered()
    entries: dict[str, Entry] = {}
    roots = []
    again = 0
    for path in map(Path, paths):
        if path.is_dir():
            roots.append(path)
            found = _walk(path, pattern, all_files, labels, gathered)
        elif path.suffix.lower() == ".csv" and path.is_file():
            found = read_csv(path, gathered.notes)
        elif path.exists() or path.is_symlink() or derived.parse(str(path)) is not None:
            found = [{"uri": absolute(path)}]
            if labels == "folder":
                found[0]["label"] = path.absolute().parent.name
        else:
            raise UserError(f"There is no file or folder {path}. Check the path; relative ones start at {Path.cwd()}.")
        for entry in found:
            entries.setdefault(entry["uri"], entry)
        again += len(found)
    if again > len(entries):
        gathered.notes.append(f"Named more than once, with one row each: {again - len(entries):,} files.")
    if csv is not None:
        _join(entries, Path(csv), roots, gathered.notes)
    if not entries:
        passed = ", ".join(f"{n} {ext or 'without extension'}" for ext, n in gathered.ignored.most_common(5))
        where = ", ".join(map(str, paths))
        raise UserError(f"No image under {where} (passed over: {passed or 'nothing'}). Images end in {_endings()}.")
    gathered.entries = [entries[uri] for uri in sorted(entries)]
    return gathered


def _endings() -> str:
    return " ".join(sorted(EXTENSIONS))


def _walk(root: Path, pattern: str | None, all_files: bool, labels: Labels, gathered: Gathered) -> list[Entry]:
    found: list[Entry] = []
    unmatched = 0
    top = absolute(root)
    places = Places(top)

    def denied(error: OSError) -> None:
        found.append({"uri": str(error.filename).rstrip(os.sep), "reason": unlistable(error)})

    for uri in files_below(top, denied):
        name = PurePath(uri).name
        extension = PurePath(name).suffix.lower()
        if not all_files and extension not in EXTENSIONS:
            gathered.ignored[extension] += 1
        elif pattern is None or fnmatch(os.path.relpath(uri, top), pattern) or fnmatch(name, pattern):
            found.append({"uri": uri})
            places.add(uri)
        else:
            unmatched += 1
    if unmatched:
        gathered.notes.append(f"{root}: images that do not match {pattern!r}: {unmatched:,}.")
    rule = places.rule(labels, gathered.notes)
    return [entry if "reason" in entry else entry | rule(entry["uri"]) for entry in found]


def unlistable(error: OSError) -> str:
    """Return the reason of a folder that cannot be listed."""
    code = "permission_denied" if isinstance(error, PermissionError) else "unreadable"
    return f"{code}: the folder cannot be listed"


def _join(entries: dict[str, Entry], csv: Path, roots: list[Path], notes: list[str]) -> None:
    """Add a CSV's columns to the files found; its paths may start at the CSV's folder or at a scanned one.

    A row that names a folder says the same of every file in it.
    """
    lost, files = 0, sorted(entries)

    def named(place: str) -> list[str]:
        if place in entries:
            return [place]
        after = chr(ord(os.sep) + 1)
        return files[bisect_left(files, place + os.sep) : bisect_left(files, place + after)]

    for row in read_csv(csv, notes):
        inside = os.path.relpath(row["uri"], absolute(csv.parent))
        places = [row["uri"], *(absolute(root / inside) for root in roots)]
        found = next(filter(None, map(named, places)), [])
        lost += not found
        for uri in found:
            entries[uri].update({**row, "uri": uri})
    if lost:
        notes.append(f"{csv}: {lost} of its rows name files that were not found.")
