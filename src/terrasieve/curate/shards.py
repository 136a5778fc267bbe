"""Shards: the kept images of a manifest as WebDataset tars in Hilbert order, with an index and a manifest.

Last step of curation: ``shard_plan`` orders the images, worker processes write the shards (``shard_writing``), this
file puts index and manifest together. Neighbours on the ground sit in the same shard, so that reading a shard in
sequence yields geographic pairs. The folder can be moved or uploaded as it is: its manifest's uris are relative.

    DIR/000000.tar ...  index.parquet  manifest.parquet
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from terrasieve import manifest
from terrasieve.curate.engine import Lost
from terrasieve.curate.shard_plan import has_key, write_plan
from terrasieve.curate.shard_writing import RECORD, Done, Part, digest_of, name_of, write_portion, write_shard
from terrasieve.curate.step import Result, Shapes, Work
from terrasieve.errors import UserError
from terrasieve.files import written_aside
from terrasieve.section import Section

INDEX = pa.schema(
    [
        ("shard", pa.string()),  # file name, beside the index
        ("samples", pa.int32()),
        ("bytes", pa.int64()),
        ("blake2b", pa.string()),  # of the whole file, 32 hex digits
        ("bounds", pa.list_(pa.float64(), 4)),  # west, south, east, north of the footprints, degrees; null without
    ]
)
_KEY = b"terrasieve:shards"
_VERSION = "1"


class ShardSettings(Section):
    """How shards are written.

    Attributes:
        shard_mb: size of a shard in megabytes; 100 to 1,000 suits file systems and object stores.
        jpeg_quality: of windows that are 8-bit grey or RGB; None = without loss (PNG, GeoTIFF). Whole files are copied.
    """

    shard_mb: float = Field(default=256.0, gt=0)
    jpeg_quality: int | None = Field(default=None, ge=1, le=100)


def export_shards(source: Path, folder: Path, settings: ShardSettings, work: Work) -> Result:
    """Write the kept rows of a manifest as shards; an export that was interrupted goes on, a damaged shard is mended.

    Args:
        source: a manifest.
        folder: where shards, index and manifest go.
        settings: size and coding.
        work: its engine writes the shards, its tick is told the images done.

    Returns:
        Counts; images that cannot be read any more are dropped with a reason, and stay in the new manifest as such.

    Raises:
        UserError: nothing is kept, the disk is full, or the writing of a shard ends its process.
    """
    key = _key(source, settings)
    plan, portions = folder / ".plan.parquet", folder / ".portions"
    notes: list[str] = []
    finished = _index_key(folder) == key and (folder / "manifest.parquet").is_file()
    if finished:
        bad = damaged(folder, work)
        if not bad:
            return _counts(folder, [f"The shards in {folder} were there and whole."])
        notes = [f"{name} was {wrong}; it was written again." for name, wrong in bad.items()]
    if not has_key(plan, key):
        shutil.rmtree(portions, ignore_errors=True)
        write_plan(source, plan, int(settings.shard_mb * 1e6), settings.jpeg_quality is not None, key)
    if finished:
        _restore_portions(folder, portions, key, set(bad))
    for name in ("index.parquet", "manifest.parquet"):
        (folder / name).unlink(missing_ok=True)  # they would speak of shards that are being replaced
    with pq.ParquetFile(plan) as file:
        shards, images = file.num_row_groups, file.metadata.num_rows
    names = [str(portions / f"{number:06d}.parquet") for number in range(shards)]
    parts = [
        Part(str(plan), number, str(folder), name, key, settings.jpeg_quality) for number, name in enumerate(names)
    ]
    done = 0
    for number, result in work.engine.run(write_shard, parts):
        done += _samples(result, parts[number])
        work.tick(done, images)
    for old in sorted(folder.glob("[0-9]" * 6 + ".tar")):
        if int(old.stem) >= shards:
            old.unlink()  # of an export of more images under the same name
    _write_manifest(folder / "manifest.parquet", names)
    _write_index(folder / "index.parquet", names, key)
    shutil.rmtree(portions)
    plan.unlink()
    return _counts(folder, notes)


def damaged(folder: Path, work: Work) -> dict[str, str]:
    """Check every shard's bytes against the index.

    Returns:
        What is wrong with each damaged shard, by its name.

    Raises:
        UserError: if the folder has no index.
    """
    index = read_index(folder).to_pylist()
    parts = [(str(folder / row["shard"]), row["bytes"], row["blake2b"]) for row in index]
    found: dict[str, str] = {}
    for done, (number, wrong) in enumerate(work.engine.run(_check, parts), 1):
        if wrong:
            found[index[number]["shard"]] = str(wrong)
        work.tick(done, len(parts))
    return dict(sorted(found.items()))


def read_index(folder: Path) -> pa.Table:
    """Read the index of a folder of shards.

    Raises:
        UserError: if there is none.
    """
    path = folder / "index.parquet"
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{folder} holds no index of shards that can be read ({error}). Write shards with `terrasieve shard "
            "MANIFEST -o FOLDER`."
        ) from error
    if _KEY not in (table.schema.metadata or {}):
        raise UserError(f"{path} is no index of shards: its columns are {', '.join(table.column_names)}.")
    return table


def _check(part: tuple[str, int, str]) -> str:
    path, n_bytes, digest = Path(part[0]), part[1], part[2]
    try:
        size = path.stat().st_size
        if size != n_bytes:
            return f"{'cut off' if size < n_bytes else 'too long'}: {size:,} of {n_bytes:,} bytes"
        return "" if digest_of(path) == digest else "altered: its bytes have another checksum"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"unreadable: {error.strerror}"


def _key(source: Path, settings: ShardSettings) -> str:
    manifest.read(source, ["keep"], empty_ok=True)  # a file that is no manifest is named as such
    text = json.dumps([_VERSION, digest_of(source), settings.model_dump()])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _index_key(folder: Path) -> str:
    path = folder / "index.parquet"
    return (pq.read_schema(path).metadata or {}).get(_KEY, b"").decode() if path.is_file() else ""


def _samples(result: Done | Lost, part: Part) -> int:
    if isinstance(result, Lost):
        raise UserError(
            f"Writing {part.path} ended its process twice (out of memory, or a decoder that crashes on an image). The "
            "shards before it are kept: run the command again, with --workers 1 to see what it says."
        )
    return result.samples + result.dropped.total()


def _restore_portions(folder: Path, portions: Path, key: str, bad: set[str]) -> None:
    """Note the whole shards of a finished export as done, so that only the damaged ones are written again."""
    with pq.ParquetFile(folder / "manifest.parquet") as file:
        for number, row in enumerate(read_index(folder).to_pylist()):
            if row["shard"] not in bad:
                path = portions / f"{number:06d}.parquet"
                write_portion(path, file.read_row_group(number), key, row["bytes"], row["blake2b"])


def _portions(names: list[str]) -> Iterator[tuple[pa.Table, dict[str, Any]]]:
    for name in names:
        table = pq.read_table(name)
        yield table, json.loads(table.schema.metadata[RECORD])


def _write_manifest(target: Path, names: list[str]) -> None:
    """Put the shards' rows together, a row group per shard."""
    schema, shapes = manifest.SCHEMA.with_metadata(manifest.version_metadata()), Shapes()
    with written_aside(target) as aside, pq.ParquetWriter(aside, schema, compression="zstd") as writer:
        for table, _ in _portions(names):
            shapes.add(table["geometry"])
            writer.write_table(table.cast(schema), row_group_size=max(len(table), 1))
        writer.add_key_value_metadata({"geo": json.dumps(shapes.metadata())})


def _write_index(target: Path, names: list[str], key: str) -> None:
    rows = []
    for number, (table, record) in enumerate(_portions(names)):
        kept = table.filter(table["keep"])
        shapes = Shapes()
        shapes.add(kept["geometry"])
        rows.append(
            {
                "shard": name_of(number),
                "samples": len(kept),
                "bytes": record["bytes"],
                "blake2b": record["blake2b"],
                "bounds": shapes.bounds.tolist() if np.isfinite(shapes.bounds).all() else None,
            }
        )
    with written_aside(target) as aside:
        pq.write_table(pa.Table.from_pylist(rows, INDEX.with_metadata({_KEY: key.encode()})), aside, compression="zstd")


def _counts(folder: Path, notes: list[str]) -> Result:
    result = Result(notes=notes)
    with pq.ParquetFile(folder / "manifest.parquet") as file:
        for batch in file.iter_batches(columns=["keep", "reason"]):
            result.rows += len(batch)
            result.kept += pc.sum(batch["keep"]).as_py() or 0
            gone = batch.filter(pc.invert(batch["keep"]))["reason"].to_pylist()
            result.dropped.update(reason.partition(":")[0] for reason in gone)
    return result
