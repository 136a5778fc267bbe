"""Pixels: a hash of an image's decoded values, for those few that may be another file of the same pixels.

Called by ``exact`` for its candidates; what was hashed is kept in ``hashes/pixels.parquet``.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from terrasieve.curate.engine import LOST, Engine
from terrasieve.curate.priority import take
from terrasieve.curate.step import Tick, numbers
from terrasieve.files import written_aside
from terrasieve.imagery.raster import read
from terrasieve.imagery.unreadable import UnreadableImage

if TYPE_CHECKING:
    from terrasieve.curate.store import Store

MOST_PX = 1 << 26  # larger images are not decoded; equal bytes alone make them equal
_PART = 256
_KNOWN = pa.schema([("id", pa.uint64()), ("stamp", pa.int64()), ("high", pa.uint64()), ("low", pa.uint64())])
_NAME = "pixels.parquet"


class Images(NamedTuple):
    """Images to be decoded: their uris and windows."""

    uris: list[str]
    windows: list[list[int] | None]


def decode(images: Images) -> np.ndarray:
    """Return (n, 2) uint64, BLAKE2b of shape, type and pixels; zeros where an image cannot be read."""
    found = np.zeros((len(images.uris), 2), np.uint64)
    for n, (uri, window) in enumerate(zip(*images, strict=True)):
        try:
            array = read(uri, window, max_pixels=MOST_PX).array
        except UnreadableImage:
            continue
        digest = hashlib.blake2b(f"{array.shape} {array.dtype}".encode(), digest_size=16)
        digest.update(np.ascontiguousarray(array).data)
        found[n] = np.frombuffer(digest.digest(), np.uint64)
    return found


def hash_pixels(
    store: Store, folder: Path, source: Path, rows: np.ndarray, stored: np.ndarray, engine: Engine, tick: Tick
) -> np.ndarray:
    """Return the pixel hashes (k, 2) uint64 of rows of a manifest; only what is not known yet is decoded.

    Args:
        store: of hashes.
        folder: of the store.
        source: the manifest.
        rows: (k,) ascending.
        stored: (k,) the same images' rows in the store.
        engine: runs the decoding.
        tick: told what is decoded.
    """
    hashes = np.asarray(pixel_hashes(store, folder)[stored])
    missing = np.flatnonzero(~hashes.any(axis=1))
    table = take(source, rows[missing], ["id", "uri", "window"])
    if not (numbers(table["id"]) == store.ids[stored[missing]]).all():
        raise AssertionError("rows of the manifest and of the store do not belong together")
    uris, windows = table["uri"].to_pylist(), table["window"].to_pylist()
    parts = [Images(uris[k : k + _PART], windows[k : k + _PART]) for k in range(0, len(missing), _PART)]
    done = 0
    for number, found in engine.run(decode, parts):
        part = missing[number * _PART : (number + 1) * _PART]
        if found is not LOST:
            hashes[part] = found
        done += len(part)
        tick(done, len(missing))
    _keep(store, folder, stored[missing], hashes[missing])
    return hashes


def pixel_hashes(store: Store, folder: Path | None) -> np.ndarray:
    """Return (n, 2) uint64 for all rows of the store, zeros where none is known of the file as it is."""
    found = np.zeros((len(store), 2), np.uint64)
    if folder is not None and (folder / _NAME).exists():
        known = pq.read_table(folder / _NAME)
        rows, stamps = store.rows(known["id"].to_numpy()), store.column("stamp")
        fresh = (rows >= 0) & (stamps[rows] == known["stamp"].to_numpy())
        values = np.stack([known["high"].to_numpy(), known["low"].to_numpy()], axis=1)
        found[rows[fresh]] = values[fresh]
    return found


def _keep(store: Store, folder: Path, rows: np.ndarray, hashes: np.ndarray) -> None:
    if not len(rows):
        return
    columns = [store.ids[rows], store.column("stamp")[rows], hashes[:, 0], hashes[:, 1]]
    fresh = pa.Table.from_arrays([pa.array(column) for column in columns], schema=_KNOWN)
    path = folder / _NAME
    tables = [pq.read_table(path), fresh] if path.exists() else [fresh]
    with written_aside(path) as aside:
        pq.write_table(pa.concat_tables(tables), aside)
