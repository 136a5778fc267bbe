"""Stamps: is a file still the one that was listed? By its size and its time of change, as make and rsync decide it.

``listing`` takes the stamps, ``collect`` keeps them beside the manifest of the scan, ``exclude.inspect`` and
``forget`` compare them with the files. Images inside a tar have the tar's stamp.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from terrasieve import manifest
from terrasieve.imagery.headers import is_remote

NAME = "listing.parquet"  # beside the manifests of the steps
LISTED = pa.schema([("id", pa.uint64()), ("stamp", pa.int64()), ("fingerprint", pa.uint64())])


def status_of(file: str) -> os.stat_result | None:
    """Return what the file system says of a file; None where there is no such local file."""
    try:
        return None if is_remote(file) else os.stat(file)  # noqa: PTH116 (three times as fast)
    except (OSError, ValueError):
        return None


def stamp(status: os.stat_result | None) -> int:
    """Return a number that changes when a file's size or time of change does; 0 where there is no local file."""
    return 0 if status is None else number_of(f"{status.st_size} {status.st_mtime_ns}") >> 1


def number_of(text: str) -> int:
    """Hash a text into 64 bits."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


class Stamps:
    """The stamps that files had when they were listed."""

    def __init__(self, path: Path) -> None:
        """Read them; where there is no listing, nothing is known to differ."""
        table = pq.read_table(path, columns=["id", "stamp"]) if path.exists() else LISTED.empty_table()
        ids = table["id"].to_numpy()
        order = np.argsort(ids, kind="stable")
        self._ids, self._stamps = ids[order], table["stamp"].to_numpy()[order]

    def differ(self, uris: pa.ChunkedArray, stamps: np.ndarray) -> np.ndarray:
        """Tell of which (n,) uris the file with this (n,) stamp is not the one that was listed."""
        if not len(self._ids):
            return np.zeros(len(uris), bool)
        last, known = "", 0
        found = np.empty(len(uris), np.int64)
        for row, uri in enumerate(uris.to_pylist()):
            if uri != last:  # windows of a scene stand together
                last, known = uri, self._of(uri)
            found[row] = known
        return np.asarray((found != 0) & (found != stamps))

    def _of(self, uri: str) -> int:
        number = np.uint64(int(manifest.row_id(uri), 16))
        at = int(np.searchsorted(self._ids, number))
        return int(self._stamps[at]) if at < len(self._ids) and self._ids[at] == number else 0
