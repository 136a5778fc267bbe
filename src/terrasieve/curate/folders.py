"""Folders: which files lie below one, in order of their path, and what the folders' names say of them.

Called by ``sources`` (a listing in memory, for ``terrasieve index``) and ``listing`` (one on disk, for curation). Holds
the names of one folder at a time, and of each folder a handful of names, so that a tree of 13 million files fits.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Literal

from terrasieve.curate.tables import split_name

Labels = Literal["auto", "folder", "none"]
_SAMPLE_FILES = 10  # folders that all hold the same few file names are samples (s1.tif, s2.tif), not classes


def files_below(top: str, denied: Callable[[OSError], None]) -> Iterator[str]:
    """Yield the files below a folder in order of their path, hidden ones left out.

    Links are followed and each real folder is entered once, so that a loop of links ends.

    Args:
        top: absolute path.
        denied: told of each folder that cannot be listed.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [iter([top.rstrip(os.sep) + os.sep])]
    while waiting:
        path = next(waiting[-1], None)
        if path is None:
            waiting.pop()
        elif path.endswith(os.sep):
            try:
                status = Path(path).stat()
                if (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    waiting.append(map(path.__add__, _names(path)))
            except OSError as error:
                denied(error)
        else:
            yield path


def _names(folder: str) -> list[str]:
    """Return a folder's names, those of folders with a separator behind them, in the order of the paths below them."""
    with os.scandir(folder) as entries:
        return sorted(
            entry.name + os.sep if _is_folder(entry) else entry.name for entry in entries if entry.name[0] != "."
        )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


class Places:
    """Where the images of a folder lie: does a folder's name stand for a class, or for a split?"""

    def __init__(self, root: str) -> None:
        """Start with an absolute path of a folder."""
        self._root = root
        self._start = len(root.rstrip(os.sep)) + 1
        self._names: defaultdict[str, set[str]] = defaultdict(set)  # by folder, relative; no more than are needed

    def add(self, uri: str) -> None:
        """Note an image below the folder."""
        folder, _, name = uri[self._start :].rpartition(os.sep)
        names = self._names[folder]
        if len(names) < _SAMPLE_FILES:
            names.add(name)

    def rule(self, labels: Labels, notes: list[str]) -> Callable[[str], dict[str, str]]:
        """Return the function that gives an image's "split" and "label".

        Args:
            labels: "auto" = the folder's name, where all images lie in two or more class folders of two or more images
                each; "folder" = always the name of the folder that holds the image; "none". Folders named train, val,
                test give the split.
            notes: gets a sentence where folders look like classes and are none.
        """
        if labels == "none" or not self._names:
            return lambda uri: {}
        folders = {folder: PurePath(folder).parts for folder in self._names}
        splits = all(parts and split_name(parts[0]) for parts in folders.values())
        depth = int(splits)
        while all(len(parts) > depth for parts in folders.values()) and len({p[depth] for p in folders.values()}) == 1:
            depth += 1  # ucmerced/Images/forest/...: one folder is nobody's class
        classes = labels == "auto" and self._are_classes({k: parts[depth:] for k, parts in folders.items()}, notes)

        def apply(uri: str) -> dict[str, str]:
            parts = PurePath(uri[self._start :]).parts
            found = {"split": split_name(parts[0]) or ""} if splits else {}
            if labels == "folder":
                found["label"] = PurePath(uri).parent.name
            elif classes:
                found["label"] = parts[depth]
            return found

        return apply

    def _are_classes(self, folders: dict[str, tuple[str, ...]], notes: list[str]) -> bool:
        if any(len(parts) != 1 for parts in folders.values()):
            return False
        names: defaultdict[str, set[str]] = defaultdict(set)
        for folder, (name,) in folders.items():
            names[name] |= self._names[folder]
        sets = list(names.values())
        if len(names) < 2 or min(map(len, sets)) < 2:
            return False
        if len(sets[0]) < _SAMPLE_FILES and all(each == sets[0] for each in sets):
            notes.append(
                f"{self._root}: {len(names)} folders hold the same file names, so they are taken for samples, not for "
                "classes (labels='folder' takes them for classes)."
            )
            return False
        return True
