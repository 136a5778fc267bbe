"""The manifest: the contract between curation and training, one GeoParquet row per image or window.

Written by ``curate.scan`` (and later steps), read by ``data.samples`` and ``evaluate``. Every row keeps why it was kept
or dropped. The file opens in GeoPandas, DuckDB and QGIS. Names follow STAC where STAC has one.

Source of the file's metadata: GeoParquet 1.1.0 (OGC), its CRS left out, which means OGC:CRS84 (longitude, latitude).
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from terrasieve.errors import UserError
from terrasieve.remote import is_url, open_url

SCHEMA_VERSION = "1"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # stable: 16 hex digits of a hash of uri and window
        ("uri", pa.string()),  # absolute path or URL of the file that holds the pixels; "./..." starts at this file
        ("window", pa.list_(pa.int32(), 4)),  # x, y, width, height in pixels of the file; null = the whole file
        ("width", pa.int32()),  # pixels of this row's image or window
        ("height", pa.int32()),
        ("bands", pa.list_(pa.string())),  # names in file order; "band_1", ... where unknown
        ("dtype", pa.string()),  # numpy name: uint8, uint16, int16, float32, ...
        ("nodata", pa.float64()),  # no-data value of the file, null when none is declared
        ("sensor", pa.string()),
        ("gsd_m", pa.float64()),  # ground sample distance in metres
        ("datetime", pa.timestamp("us", tz="UTC")),
        ("geometry", pa.binary()),  # WKB footprint, EPSG:4326, null without coordinates
        ("lon", pa.float64()),  # footprint centre, EPSG:4326 degrees, null when unknown
        ("lat", pa.float64()),
        ("crs", pa.string()),  # of the file, "EPSG:32721" or WKT
        ("source", pa.string()),  # name of the collection that the image comes from
        ("licence", pa.string()),
        ("split", pa.string()),  # train, val, test or null
        ("label", pa.string()),  # class of a multi-class task
        ("labels", pa.list_(pa.string())),  # classes of a multi-label task
        ("phash", pa.uint64()),  # written by curation
        ("group", pa.int64()),  # duplicates and same-site images share a group
        ("keep", pa.bool_()),
        ("reason", pa.string()),  # why a row is not kept; empty when it is
    ]
)
_VERSION_KEY = b"terrasieve:schema"
_FOLDER_KEY = b"terrasieve:folder"  # of a table in memory: where uris that are relative in its file start


def row_id(uri: str, window: Sequence[int] | None = None) -> str:
    """Return a row's id: 16 hex digits of a hash of its uri and window (x, y, width, height; None = the whole file)."""
    text = uri if window is None else "\x1f".join([uri, *(str(int(part)) for part in window)])
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def rows_to_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Make a manifest table of rows; a missing key is null.

    Raises:
        UserError: a key that the schema lacks, or a value of another type than its column.
    """
    rows = list(rows)
    unknown = sorted({key for row in rows for key in row} - set(SCHEMA.names))
    if unknown:
        raise UserError(f"A manifest has no column {unknown[0]!r}.{_nearest(unknown[0])}")
    columns = []
    for field in SCHEMA:
        try:
            columns.append(pa.array([row.get(field.name) for row in rows], field.type))
        except (pa.ArrowException, TypeError, OverflowError) as error:
            raise UserError(f"Manifest column {field.name!r} takes {field.type}: {error}") from error
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def write(table: pa.Table, path: str | Path) -> None:
    """Write a manifest as GeoParquet; the file appears under its name only when it is whole.

    Args:
        table: of ``SCHEMA``, its columns in any order.
        path: the file to write; its folder is made.

    Raises:
        UserError: columns missing, foreign or of another type; a folder that cannot be written to.
    """
    path = Path(path)
    table = _conformed(table).replace_schema_metadata(
        version_metadata() | {b"geo": json.dumps(geo_metadata(table["geometry"])).encode()}
    )
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, part, compression="zstd", row_group_size=65_536)
        part.replace(path)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error}. Choose another place for the manifest.") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def read(path: str | Path, columns: Sequence[str] | None = None, *, empty_ok: bool = False) -> pa.Table:
    """Read a manifest.

    Args:
        path: a file written by ``write``, or a URL of one that fsspec reads; uris "./..." come back in full, starting
            at its folder.
        columns: names, in the order wanted; None = all.
        empty_ok: accept a manifest of which no row is kept, as a review of what was dropped does.

    Raises:
        UserError: no file, not Parquet, truncated, not a manifest, another schema version, an unknown column, or no
            row to use.
    """
    unknown = [name for name in columns or () if name not in SCHEMA.names]
    if unknown:
        raise UserError(f"A manifest has no column {unknown[0]!r}.{_nearest(unknown[0])}")
    _check_parquet(path)
    wanted = None if columns is None else list(dict.fromkeys([*columns, "keep"]))
    try:
        with _opened(path) as stream, pq.ParquetFile(stream) as file:
            _check_version(path, file.schema_arrow)
            table = resolved(file.read(wanted), path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path} is a damaged Parquet file ({error}). Make it again with `terrasieve index`."
        ) from error
    if not empty_ok and not pc.any(table["keep"]).as_py():
        raise UserError(
            f"{path} has no usable row: 0 of {table.num_rows} are kept. Its column 'reason' says why; index a folder "
            "that holds images, or loosen the curation."
        )
    return table if columns is None else table.select(list(columns))


def resolved(table: pa.Table, path: str | Path) -> pa.Table:
    """Return a manifest's rows with their relative uris ("./...") in full.

    Args:
        table: any of a manifest's columns, as its file has them.
        path: of the file, or its URL.
    """
    if "uri" not in table.column_names:
        return table
    relative = pc.fill_null(pc.starts_with(table["uri"], "./"), False)
    if not pc.any(relative).as_py():
        return table
    folder = path.rpartition("/")[0] if is_url(path) else str(Path(path).absolute().parent)
    whole = pc.binary_join_element_wise(folder, pc.utf8_slice_codeunits(table["uri"], 1), "")
    uris = pc.if_else(relative, whole, table["uri"])
    table = table.set_column(table.column_names.index("uri"), "uri", uris)
    return table.replace_schema_metadata((table.schema.metadata or {}) | {_FOLDER_KEY: folder.encode()})


def _as_written(table: pa.Table) -> pa.Table:
    """Undo ``resolved``, so that a manifest that is moved together with its images stays the same one."""
    folder = (table.schema.metadata or {}).get(_FOLDER_KEY, b"").decode()
    if not folder:
        return table
    inside = pc.fill_null(pc.starts_with(table["uri"], folder + "/"), False)
    cut = pc.binary_join_element_wise(".", pc.utf8_slice_codeunits(table["uri"], len(folder)), "")
    return table.set_column(table.column_names.index("uri"), "uri", pc.if_else(inside, cut, table["uri"]))


def content_hash(table: pa.Table | str | Path) -> str:
    """Return 32 hex digits of a hash of a manifest's content, whatever its row groups, chunks and compression.

    Where images lie beside their manifest and its uris are relative, moving both changes nothing.
    """
    table = _as_written(table if isinstance(table, pa.Table) else read(table, empty_ok=True))
    digest = hashlib.blake2b(f"terrasieve manifest {SCHEMA_VERSION}".encode(), digest_size=16)
    for field in _conformed(table).schema:
        digest.update(field.name.encode())
        _hash_array(digest, table[field.name].cast(field.type).combine_chunks())
    return digest.hexdigest()


def _hash_array(digest: hashlib.blake2b, array: pa.Array) -> None:
    """Feed values and nulls to the digest; what Arrow leaves under a null, and where a slice begins, plays no part."""
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    digest.update(array.is_valid().to_numpy(zero_copy_only=False).tobytes())
    kind = array.type
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = pc.fill_null(pc.list_value_length(array), -1)
        digest.update(lengths.to_numpy(zero_copy_only=False).astype(np.int64).tobytes())
        _hash_array(digest, array.flatten())
    elif pa.types.is_string(kind) or pa.types.is_binary(kind):
        array = pc.fill_null(array.cast(pa.binary()), b"").cast(pa.large_binary())
        ends = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
        digest.update((ends - ends[:1]).tobytes())
        digest.update(memoryview(array.buffers()[2] or b"")[ends[0] : ends[-1]] if len(array) else b"")
    else:
        if pa.types.is_timestamp(kind):
            array = array.cast(pa.int64())
        digest.update(pc.fill_null(array, False if pa.types.is_boolean(kind) else 0).to_numpy(False).tobytes())


def _conformed(table: pa.Table) -> pa.Table:
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    foreign = [name for name in table.column_names if name not in SCHEMA.names]
    if missing or foreign:
        raise UserError(f"Not a manifest: columns missing {missing}, columns unknown {foreign}.")
    try:
        return table.select(SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowException, ValueError) as error:
        raise UserError(f"Not a manifest: {error}") from error


def geo_metadata(geometry: pa.ChunkedArray) -> dict[str, Any]:
    """Return what GeoParquet says of a file whose footprints are this column of WKB."""
    import shapely

    shapes = shapely.from_wkb(geometry.drop_null().to_numpy())
    return geo_metadata_of({shape.geom_type for shape in shapes}, shapely.total_bounds(shapes) if len(shapes) else None)


def geo_metadata_of(kinds: set[str], bounds: Iterable[float] | None) -> dict[str, Any]:
    """Return what GeoParquet says of a file with these types of geometry within these bounds, in degrees."""
    column: dict[str, Any] = {"encoding": "WKB", "geometry_types": sorted(kinds)}
    if bounds is not None:
        column["bbox"] = [float(edge) for edge in bounds]
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


def version_metadata() -> dict[bytes, bytes]:
    """Return the entry of a Parquet file's metadata by which a manifest is known."""
    return {_VERSION_KEY: SCHEMA_VERSION.encode()}


def _opened(path: str | Path) -> BinaryIO:
    return open_url(path) if is_url(path) else Path(path).open("rb")


def _check_parquet(path: str | Path) -> None:
    remedy = "Make a manifest with `terrasieve index FOLDER -o FILE.parquet`."
    try:
        with _opened(path) as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(0)
            first = stream.read(4)
            stream.seek(max(size - 4, 0))
            last = stream.read(4)
    except FileNotFoundError as error:
        raise UserError(f"There is no manifest {path}. {remedy}") from error
    except OSError as error:
        raise UserError(f"Cannot read the manifest {path}: {error.strerror or error}.") from error
    if first != b"PAR1":
        raise UserError(f"{path} is not a Parquet file: it begins with {first!r}. {remedy}")
    if last != b"PAR1" or size < 12:
        raise UserError(f"{path} is a truncated Parquet file of {size:,} bytes. Make or copy it again.")


def _check_version(path: str | Path, schema: pa.Schema) -> None:
    found = (schema.metadata or {}).get(_VERSION_KEY)
    if found is None:
        raise UserError(
            f"{path} is a Parquet file but no terrasieve manifest (columns {', '.join(schema.names[:5])}, ...). "
            "Make one with `terrasieve index FOLDER -o FILE.parquet`."
        )
    if found.decode() != SCHEMA_VERSION:
        raise UserError(
            f"{path} has manifest schema {found.decode()}; this terrasieve reads schema {SCHEMA_VERSION}. "
            "Index the images again, or use the terrasieve that wrote it."
        )
    missing = [name for name in SCHEMA.names if name not in schema.names]
    if missing:
        raise UserError(f"{path} lacks the manifest columns {', '.join(missing)}. Index the images again.")


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, SCHEMA.names, 1)
    return f" Did you mean {near[0]!r}?" if near else f" It has {', '.join(SCHEMA.names)}."
