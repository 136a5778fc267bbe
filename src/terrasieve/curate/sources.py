"""Sources: which files are to be indexed, and what folders and CSV files say about them.

First step of ``scan``: turns folders, single files and CSV files into entries, rows that hold a uri and whatever is
known before the file is opened (label, split, place, time). Entries come sorted by uri, each uri once.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePath
from typing import Any, Literal

from terrasieve.curate.tables import absolute, read_csv, split_name
from terrasieve.errors import UserError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".tif", ".tiff", ".gtiff", ".jp2", ".j2k", ".webp", ".bmp"})
Labels = Literal["auto", "folder", "none"]
Entry = dict[str, Any]  # manifest columns known so far; "reason" when the file is already known to be unusable

_SAMPLE_FILES = 10  # folders that all hold the same few file names are samples (s1.tif, s2.tif), not classes


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
            found = _walk(path, pattern, all_files, gathered)
            _label(path, found, labels, gathered)
        elif path.suffix.lower() == ".csv" and path.is_file():
            found = read_csv(path, gathered.notes)
        elif path.exists() or path.is_symlink():
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


def _walk(root: Path, pattern: str | None, all_files: bool, gathered: Gathered) -> list[Entry]:
    found: list[Entry] = []
    unmatched = 0

    def denied(error: OSError) -> None:
        code = "permission_denied" if isinstance(error, PermissionError) else "unreadable"
        found.append({"uri": str(error.filename), "reason": f"{code}: the folder cannot be listed"})

    top = absolute(root)
    for folder, files in _folders(top, denied):
        for name in files:
            if name.startswith("."):
                continue
            extension = PurePath(name).suffix.lower()
            uri = f"{folder}{os.sep}{name}"
            inside = os.path.relpath(uri, top)
            if not all_files and extension not in EXTENSIONS:
                gathered.ignored[extension] += 1
            elif pattern is None or fnmatch(inside, pattern) or fnmatch(name, pattern):
                found.append({"uri": uri})
            else:
                unmatched += 1
    if unmatched:
        gathered.notes.append(f"{root}: images that do not match {pattern!r}: {unmatched:,}.")
    return found


def _folders(top: str, denied: Any) -> Iterator[tuple[str, list[str]]]:
    """Walk folders in order of name, through links, each real folder once, so that a loop of links ends."""
    seen: set[tuple[int, int]] = set()
    for folder, inner, files in os.walk(top, onerror=denied, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            inner.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield folder, sorted(files)


def _label(root: Path, entries: list[Entry], labels: Labels, gathered: Gathered) -> None:
    """Add ``split`` from folders named train, val, test, and ``label`` from class folders."""
    if labels == "none":
        return
    usable = [entry for entry in entries if "reason" not in entry]
    places = [PurePath(os.path.relpath(entry["uri"], absolute(root))).parts for entry in usable]
    if places and all(len(place) > 1 and split_name(place[0]) for place in places):
        for entry, place in zip(usable, places, strict=True):
            entry["split"] = split_name(place[0])
        places = [place[1:] for place in places]
    while places and len({place[0] for place in places}) == 1 and all(len(place) > 1 for place in places):
        places = [place[1:] for place in places]  # ucmerced/Images/forest/...: one folder is nobody's class
    if labels == "folder":
        for entry in usable:
            entry["label"] = PurePath(entry["uri"]).parent.name
        return
    names: defaultdict[str, set[str]] = defaultdict(set)
    for place in places:
        names[place[0]].add(place[-1])
    sets = list(names.values())
    if len(names) < 2 or any(len(place) != 2 for place in places) or min(map(len, sets)) < 2:
        return
    if len(sets[0]) < _SAMPLE_FILES and all(each == sets[0] for each in sets):
        gathered.notes.append(
            f"{root}: {len(names)} folders hold the same file names, so they are taken for samples, not for classes "
            "(labels='folder' takes them for classes)."
        )
        return
    for entry, place in zip(usable, places, strict=True):
        entry["label"] = place[0]


def _join(entries: dict[str, Entry], csv: Path, roots: list[Path], notes: list[str]) -> None:
    """Add a CSV's columns to the files found; its paths may start at the CSV's folder or at a scanned one."""
    lost = 0
    for row in read_csv(csv, notes):
        inside = os.path.relpath(row["uri"], absolute(csv.parent))
        places = [row["uri"], *(absolute(root / inside) for root in roots)]
        uri = next((place for place in places if place in entries), None)
        if uri is None:
            lost += 1
        else:
            entries[uri].update({**row, "uri": uri})
    if lost:
        notes.append(f"{csv}: {lost} of its rows name files that were not found.")
