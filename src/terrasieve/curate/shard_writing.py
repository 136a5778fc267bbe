"""Shard writing: one shard of the plan as a WebDataset tar. Runs in worker processes, for ``shards``.

A sample is two members, ``ID.jpg`` (png, tif, ...) with the pixels and ``ID.json`` with what the manifest knows of it.
Nothing of this machine, this user or the clock goes into a shard: the same manifest gives the same bytes everywhere.

Source: the WebDataset format (members of a sample share the name up to the first dot and stand side by side); POSIX
ustar.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from terrasieve import manifest
from terrasieve.files import written_aside
from terrasieve.imagery import cut, members
from terrasieve.imagery.unreadable import UnreadableImage

RECORD = b"terrasieve:shard"
_BEYOND_BYTES = 4_000_000_000  # an image is held in memory on its way into a shard
_PLAIN = ("width", "height", "bands", "dtype", "nodata", "sensor", "gsd_m", "lon", "lat", "crs", "source", "licence")
_MORE = ("split", "label", "labels", "group")


class Part(NamedTuple):
    """A shard to be written: row group ``number`` of ``plan``.

    Attributes:
        plan: of ``shard_plan.write_plan``.
        number: of the shard, and of its row group.
        folder: where the shards go.
        portion: file for the shard's rows of the manifest, with the shard's record in its metadata.
        key: of the export.
        jpeg_quality: of windows; None = without loss.
    """

    plan: str
    number: int
    folder: str
    portion: str
    key: str
    jpeg_quality: int | None

    @property
    def path(self) -> Path:
        return Path(self.folder, name_of(self.number))


class Done(NamedTuple):
    """A shard that is there: samples in it, images dropped by code of the reason."""

    samples: int
    dropped: Counter[str]


def name_of(number: int) -> str:
    """Name a shard by its number."""
    return f"{number:06d}.tar"


def digest_of(path: Path) -> str:
    """Return a file's blake2b as 32 hex digits.

    Raises:
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def write_shard(part: Part) -> Done:
    """Write a shard and its portion of the manifest, unless both are there and whole."""
    portion = Path(part.portion)
    if portion.is_file() and _is_whole(part, portion):
        return _done(pq.read_table(portion))
    with pq.ParquetFile(part.plan) as file:
        table = file.read_row_group(part.number)
    rows: list[dict[str, Any]] = []
    with written_aside(part.path) as aside:
        with aside.open("wb") as file:
            _fill(file, table.to_pylist(), part, rows)
        n_bytes, digest = aside.stat().st_size, digest_of(aside)
    written = manifest.rows_to_table(rows)
    write_portion(portion, written, part.key, n_bytes, digest)
    return _done(written)


def write_portion(path: Path, rows: pa.Table, key: str, n_bytes: int, digest: str) -> None:
    """Note a shard that is done: its rows of the manifest, and by which export, size and blake2b it is known."""
    record = {"key": key, "bytes": n_bytes, "blake2b": digest}
    with written_aside(path) as aside:
        pq.write_table(rows.replace_schema_metadata({RECORD: json.dumps(record).encode()}), aside)


def _is_whole(part: Part, portion: Path) -> bool:
    record = json.loads(pq.read_schema(portion).metadata[RECORD])
    try:
        return bool(
            record["key"] == part.key
            and part.path.stat().st_size == record["bytes"]
            and digest_of(part.path) == record["blake2b"]
        )
    except OSError:
        return False


def _done(table: pa.Table) -> Done:
    reasons = [reason.partition(":")[0] for reason in table["reason"].to_pylist() if reason]
    return Done(len(table) - len(reasons), Counter(reasons))


def _fill(file: Any, planned: list[dict[str, Any]], part: Part, rows: list[dict[str, Any]]) -> None:
    """Write the samples, and note each row as the shards' manifest has it."""
    with tarfile.TarFile(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for row in planned:
            try:
                found = _file(row, part.jpeg_quality)
            except UnreadableImage as error:
                rows.append(row | {"keep": False, "reason": error.reason})
                continue
            offset = _add(tar, f"{row['id']}.{found.suffix}", found.data)
            _add(tar, f"{row['id']}.json", _about(row, found.transform))
            name, size = f"{row['id']}.{found.suffix}", len(found.data)
            uri = members.member_uri(f"./{name_of(part.number)}", name, offset, size, zlib.crc32(found.data))
            rows.append(row | {"uri": uri, "window": None})


def _file(row: dict[str, Any], jpeg_quality: int | None) -> cut.File:
    if row["window"] is not None:
        return cut.window(row["uri"], row["window"], row["bands"], row["nodata"], jpeg_quality)
    member = members.parse(row["uri"])
    path = Path(row["uri"])
    size = member.size if member is not None else path.stat().st_size if path.is_file() else 0
    if size > _BEYOND_BYTES:
        detail = f"a file of {size:,} bytes does not go into a shard whole; slice it"
        raise UnreadableImage(row["uri"], "unreadable", detail)
    return cut.whole(row["uri"], row["width"], row["height"])


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a member; returns the offset of its first byte."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    offset = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(info, io.BytesIO(data))
    return offset


def _about(row: dict[str, Any], transform: tuple[float, ...] | None) -> bytes:
    """Return what is known of an image as JSON: the manifest's columns that are not null, names as they are there."""
    member = members.parse(row["uri"])
    about: dict[str, Any] = {
        "id": row["id"],
        "file": Path(member.name if member is not None else row["uri"]).name,
        "window": row["window"],
        **{name: row[name] for name in _PLAIN},
        "transform": transform,
        "datetime": row["datetime"] and row["datetime"].isoformat(),
        "geometry": row["geometry"] and json.loads(shapely.to_geojson(shapely.from_wkb(row["geometry"]))),
        **{name: row[name] for name in _MORE},
    }
    return json.dumps({name: value for name, value in about.items() if value is not None}, ensure_ascii=False).encode()
