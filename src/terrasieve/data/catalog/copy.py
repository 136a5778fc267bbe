"""Copy: a data set's folder on disk, looked at through listings of its folders, and what is missing from it.

Called by the readers (one per data set, beside this file), by ``curate.catalogued`` and ``terrasieve datasets``. Each
folder is listed once, so that a copy of millions of files is checked without opening one.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from terrasieve.data.catalog.entry import Entry, Item
from terrasieve.errors import UserError
from terrasieve.imagery.derived import parse

IMAGES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".jp2", ".bmp")
_DEPTH = 3  # folders below the one that is named, in which a copy is looked for
_LISTED = 12  # groups of missing images that are named


@dataclass
class Copy:
    """A data set's folder.

    Attributes:
        root: absolute path.
        variant: of the entry, "" = it has none.
        problems: what is missing or wrong, one sentence each; readers add to it.
    """

    root: Path
    variant: str = ""
    problems: list[str] = field(default_factory=list)
    _folders: dict[str, frozenset[str]] = field(default_factory=dict, repr=False)

    def names(self, folder: str = "") -> frozenset[str]:
        """Return the names in a folder below the root, hidden ones left out; none where there is no such folder."""
        if folder not in self._folders:
            try:
                found = frozenset(each.name for each in (self.root / folder).iterdir() if each.name[0] != ".")
            except (FileNotFoundError, NotADirectoryError):
                found = frozenset()
            self._folders[folder] = found
        return self._folders[folder]

    def has(self, path: str) -> bool:
        """Tell whether there is a file or folder of this path below the root."""
        folder, _, name = path.rstrip("/").rpartition("/")
        return name in self.names(folder) if name not in ("", ".", "..") else (self.root / path).exists()

    def folders(self, folder: str = "") -> list[str]:
        """Return the names of the folders in a folder, sorted."""
        return sorted(name for name in self.names(folder) if (self.root / folder / name).is_dir())

    def images(self, folder: str, endings: tuple[str, ...] = IMAGES) -> list[str]:
        """Return the paths of the images in a folder, sorted."""
        found = (name for name in self.names(folder) if name.lower().endswith(endings))
        return sorted(f"{folder}/{name}" if folder else name for name in found)

    def paired(self, folder: str, other: str, rename: tuple[str, str] = ("", ""), ending: str = "") -> list[str]:
        """Return the paths in a folder, sorted, of images that are there or that a file of another folder belongs to.

        Args:
            folder: of images.
            other: of their masks or outlines.
            rename: text in the other files' names, and what stands there in the images'.
            ending: of the images' names; "" = the other files' own.
        """
        found = set(self.images(folder))
        for name in self.names(other):
            stem, dot, own = name.replace(*rename).rpartition(".")
            found.add(f"{folder}/{stem}{ending or dot + own}")
        return sorted(found)

    def first(self, *paths: str) -> str | None:
        """Return the first of several paths that there is."""
        return next((path for path in paths if self.has(path)), None)

    def lines(self, *paths: str) -> list[str] | None:
        """Return the lines of a list, empty ones left out, under the first of its possible names; None = it lacks."""
        path = self.first(*paths)
        if path is None:
            self.problems.append(f"there is no list {' or '.join(paths)}")
            return None
        text = (self.root / path).read_text(encoding="utf-8-sig")
        return [line.strip() for line in text.splitlines() if line.strip()]

    def table(self, *paths: str) -> list[dict[str, str]] | None:
        """Return the rows of a CSV file with a header, under the first of its possible names; None = it lacks."""
        path = self.first(*paths)
        if path is None:
            self.problems.append(f"there is no table {' or '.join(paths)}")
            return None
        with (self.root / path).open(newline="", encoding="utf-8-sig") as stream:
            return list(csv.DictReader(stream))

    def lacks(self, item: Item) -> list[str]:
        """Return the files that an image and its mask are made of and that there are not."""
        files = [file for uri in (item.uri, item.mask) if uri for file in files_below(uri)]
        return [file for file in files if not self.has(file)]

    def absolute(self, uri: str) -> str:
        """Return an item's uri with absolute paths."""
        made = parse(uri)
        whole = f"{self.root}/{uri}"
        return (
            whole
            if made is None or not made.like
            else whole.replace(f"like={made.like}", f"like={self.root}/{made.like}")
        )


def files_below(uri: str) -> tuple[str, ...]:
    """Return the files of an item's uri, below the copy's folder."""
    made = parse(uri)
    return (uri,) if made is None else made.files


def find(entry: Entry, path: Path) -> Path | None:
    """Return the folder at or below ``path`` that holds one of the entry's marks; None = there is none."""
    level = [path]
    for _ in range(_DEPTH + 1):
        for folder in level:
            if any((folder / mark).exists() for mark in entry.marks):
                return folder
        level = [sub for folder in level for sub in _folders(folder)]
    return None


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as found:
            return sorted(Path(each.path) for each in found if each.is_dir() and each.name[0] != ".")[:64]
    except OSError:
        return []


def opened(entry: Entry, path: Path, variant: str = "") -> Copy:
    """Open a copy of a data set.

    Args:
        entry: of which.
        path: its folder, or one above it.
        variant: of the entry; "" = the first.

    Raises:
        UserError: no such folder, none that looks like the data set, or an unknown variant.
    """
    if variant and variant not in entry.variants:
        choices = ", ".join(f"{entry.name}/{name}" for name in entry.variants) or f"{entry.name} alone"
        raise UserError(f"{entry.name} has no variant {variant!r}; there is {choices}.")
    if not path.is_dir():
        raise UserError(f"There is no folder {path}. How to obtain the data set: terrasieve datasets {entry.name}")
    root = find(entry, path)
    if root is None:
        holds = ", ".join(sorted(each.name for each in path.iterdir() if each.name[0] != ".")[:8]) or "nothing"
        marks = ", ".join(entry.marks[:-1]) + " or " * (len(entry.marks) > 1) + entry.marks[-1]
        raise UserError(
            f"{path} is no copy of {entry.title}: neither it nor a folder up to {_DEPTH} levels below holds {marks}. "
            f"It holds {holds}. Expected:\n{entry.layout.strip()}"
        )
    return Copy(Path(os.path.normpath(root.absolute())), variant or (entry.variants[0] if entry.variants else ""))


@dataclass
class Present:
    """What of a data set a copy holds.

    Attributes:
        items: images whose files are all there.
        missing: first missing file of each image that is not whole, by group (folder and class, or split and folder).
        expected: images by group, there or not.
        listed: images by split ("" = none), there or not.
        splits: images that are there, by split.
    """

    items: list[Item] = field(default_factory=list)
    missing: dict[str, list[str]] = field(default_factory=dict)
    expected: Counter[str] = field(default_factory=Counter)
    listed: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)


def look(entry: Entry, copy: Copy) -> Present:
    """Compare a copy with what its reader lists."""
    found = Present()
    for item in entry.reader(copy):
        lacking = copy.lacks(item)
        group = _group(item)
        found.expected[group] += 1
        found.listed[item.split or ""] += 1
        if lacking:
            found.missing.setdefault(group, []).append(lacking[0])
        else:
            found.items.append(item)
            found.splits[item.split or ""] += 1
    return found


def _group(item: Item) -> str:
    """Name what an image is missing from: the top of its path, with its class, or else with its split."""
    top = files_below(item.uri)[0].rpartition("/")[0].partition("/")[0]
    return "/".join(part for part in ((top, item.label) if item.label else (item.split, top)) if part)


def diagnosis(entry: Entry, copy: Copy, found: Present) -> list[str]:
    """Return what is wrong with a copy, one sentence each; none = it is whole."""
    lines = list(dict.fromkeys(copy.problems))
    if len(lines) > _LISTED:
        lines = [*lines[:_LISTED], f"and {len(lines) - _LISTED:,} more of these"]
    groups = sorted(found.missing.items(), key=lambda group: (-len(group[1]), group[0]))
    partly = [(group, files) for group, files in groups if len(files) < found.expected[group]]
    wholly = [(group, files) for group, files in groups if len(files) == found.expected[group]]
    for group, files in partly[:_LISTED]:
        lines.append(f"{group}: {len(files):,} of {found.expected[group]:,} images missing, first: {files[0]}")
    if len(partly) > _LISTED:
        rest = partly[_LISTED:]
        lines.append(f"and {sum(len(files) for _, files in rest):,} images missing of {len(rest):,} more groups")
    if wholly:
        count = sum(len(files) for _, files in wholly)
        named = ", ".join(group for group, _ in wholly[:_LISTED]) + (", ..." if len(wholly) > _LISTED else "")
        lines.append(f"all {count:,} images missing of {named}, first: {wholly[0][1][0]}")
    for split, count in entry.expected(copy.variant).items():
        listed = found.listed[split] if split else sum(found.listed.values())
        if listed != count:
            lines.append(f"{split or 'all'}: {listed:,} images listed by this copy, {count:,} published")
    return lines


def checksums(entry: Entry, path: Path) -> Iterator[tuple[str, str]]:
    """Compare archives that lie in a folder with their published checksums: (name, "ok", "damaged" or "unknown")."""
    for archive in entry.archives:
        file = path / archive.name
        if file.is_file():
            yield archive.name, "unknown" if not archive.md5 else "ok" if md5(file) == archive.md5 else "damaged"


def md5(file: Path) -> str:
    """Return the MD5 checksum of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def classes_of(items: Iterable[Item]) -> set[str]:
    """Return the classes that images are of."""
    return {name for item in items for name in ([item.label] if item.label else item.labels or ())}
