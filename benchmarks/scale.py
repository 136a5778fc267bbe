"""Curate 13 million synthetic rows on one machine: time and peak memory of each step, each in a process of its own.

Run: python benchmarks/scale.py DIR [--rows 13000000]. Writes DIR/scan.parquet, a manifest of images that are not there,
and DIR/hashes, a store as `terrasieve hash` would leave it (thumbnails are zeros, compressed away, so verification is
not measured here but in deduplication.py): 5 % of the images are near copies of others, 5 % near-uniform, 1 % equal.
Then exclude, exact (by bytes), sparse and near run over it as `terrasieve curate` runs them.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from terrasieve import keyed, manifest
from terrasieve.curate import look
from terrasieve.curate.step import ROW_GROUP, Work

SOURCES = ("million_aid", "naip", "sentinel2", "landsat", "planet")
LABELS = ("forest", "river", "town", "farmland", "airport", "harbour", "desert", None)


def write_manifest(path: Path, rows: int, seed: int = 0) -> None:
    """Write a manifest of synthetic rows with sizes, sources, labels, dates and footprints, row group by row group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = manifest.SCHEMA.with_metadata(
        manifest.version_metadata() | {b"geo": json.dumps(manifest.geo_metadata_of({"Polygon"}, None)).encode()}
    )
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for first in range(0, rows, ROW_GROUP):
            count = min(ROW_GROUP, rows - first)
            writer.write_table(_rows(first, count, seed).cast(schema), row_group_size=ROW_GROUP)


def _rows(first: int, count: int, seed: int) -> pa.Table:
    draw = keyed.numpy_generator(seed, "scale rows", first)
    number = np.arange(first, first + count)
    kind = number * len(SOURCES) // 13_000_000 % len(SOURCES)
    side = draw.choice([32, 224, 256, 512, 600], count, p=[0.01, 0.2, 0.39, 0.3, 0.1]).astype(np.int32)
    lon, lat = draw.uniform(-180, 179, count), draw.uniform(-60, 75, count)
    columns = {
        "id": [f"{value:016x}" for value in ids_of(first, count, seed).tolist()],
        "uri": [f"/archive/{SOURCES[k]}/{n // 1000:05d}/image_{n:08d}.jpg" for n, k in zip(number, kind, strict=True)],
        "width": side,
        "height": side,
        "bands": [["red", "green", "blue"]] * count,
        "dtype": ["uint8"] * count,
        "sensor": np.array(["aerial", "aerial", "msi", "oli", "dove"], object)[kind],
        "gsd_m": np.array([0.5, 0.6, 10.0, 30.0, 3.0])[kind],
        "datetime": pa.array(draw.integers(1.4e15, 1.75e15, count), pa.timestamp("us", tz="UTC")),
        "geometry": shapely.to_wkb(shapely.box(lon, lat, lon + 0.01, lat + 0.01)),
        "lon": lon,
        "lat": lat,
        "crs": ["EPSG:4326"] * count,
        "source": np.array(SOURCES, object)[kind],
        "licence": np.array(["CC-BY-4.0", "public domain", "Copernicus", "public domain", "CC-BY-NC-4.0"], object)[
            kind
        ],
        "label": np.array(LABELS, object)[draw.integers(0, len(LABELS), count)],
        "phash": ids_of(first, count, seed),  # the store's are joined; here it only has to be there
        "keep": np.ones(count, bool),
        "reason": [""] * count,
    }
    arrays = [
        pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(count, f.type) for f in manifest.SCHEMA
    ]
    return pa.Table.from_arrays(arrays, schema=manifest.SCHEMA)


def ids_of(first: int, count: int, seed: int) -> np.ndarray:
    """Return ids (n,) uint64 of synthetic rows."""
    return keyed.mixed(seed, "scale ids", np.arange(first, first + count, dtype=np.uint64))


def write_store(folder: Path, rows: int, seed: int = 0) -> None:
    """Write the hash store of the synthetic rows."""
    folder.mkdir(parents=True, exist_ok=True)
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    for number, first in enumerate(range(0, rows, ROW_GROUP)):
        count = min(ROW_GROUP, rows - first)
        batch = _hashes(first, count, rows, seed)
        path = str(folder / f"part-{number:06d}.arrow")
        with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, look.SCHEMA, options=options) as writer:
            writer.write_batch(batch)


def _hashes(first: int, count: int, rows: int, seed: int) -> pa.RecordBatch:
    draw = keyed.numpy_generator(seed, "scale hashes", first)
    number = np.arange(first, first + count, dtype=np.uint64)
    near = draw.random(count) < 0.05
    like = np.where(near, draw.integers(0, rows, count).astype(np.uint64), number)
    phash = np.stack([keyed.mixed(seed, f"scale hash {turn}", like) for turn in range(8)], axis=1)
    flat = draw.random(count) < 0.05
    phash[flat] = 0xFEDCBA9876543210
    for _ in range(4):
        flips = np.uint64(1) << draw.integers(0, 64, count).astype(np.uint64)
        phash[near | flat] ^= flips[near | flat, None]
    equal = draw.random(count) < 0.01
    content = keyed.mixed(seed, "scale bytes", np.where(equal, draw.integers(0, rows, count).astype(np.uint64), number))
    turns = (1 << draw.integers(0, 8, count)) | (1 << draw.integers(0, 16, count)) & 255
    columns = [
        pa.array(ids_of(first, count, seed)),
        pa.array(np.zeros(count, np.int64)),
        pa.FixedSizeListArray.from_arrays(pa.array(content.repeat(2)), 2),
        pa.FixedSizeListArray.from_arrays(pa.array(phash.ravel()), 8),
        pa.array(phash[:, 0] >> np.uint64(1)),
        pa.array(turns.astype(np.uint8)),
        pa.array(np.where(flat, 1.0, 4.0).astype(np.float32)),
        pa.array(np.ones(count, np.float32)),
        pa.array(np.where(flat, 1.5, 40).astype(np.float32) + draw.random(count, np.float32)),
        pa.nulls(count, pa.string()),
        pa.FixedSizeBinaryArray.from_buffers(pa.binary(1024), count, [None, pa.py_buffer(bytes(1024 * count))]),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=look.SCHEMA)


def once(name: str, folder: Path) -> dict[str, object]:
    """Run a step in this process."""
    from terrasieve.curate.exact import ExactSettings
    from terrasieve.curate.steps import STEPS

    source = {"exclude": "scan", "exact": "exclude", "sparse": "exact", "near": "sparse"}[name]
    step = STEPS[name]
    settings = ExactSettings(pixels=False) if name == "exact" else step.settings()
    wall, cpu = time.perf_counter(), time.process_time()
    result = step.run(folder / f"{source}.parquet", folder / f"{name}.parquet", settings, Work(folder))
    return {
        "step": name,
        "rows": result.rows,
        "kept": result.kept,
        "dropped": dict(result.dropped),
        "wall_s": round(time.perf_counter() - wall, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "notes": result.notes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=13_000_000)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(once(given.one, given.folder)))
        return
    if not (given.folder / "scan.parquet").exists():
        write_manifest(given.folder / "scan.parquet", given.rows)
        write_store(given.folder / "hashes", given.rows)
    for name in ("exclude", "exact", "sparse", "near"):
        command = [sys.executable, __file__, str(given.folder), "--one", name]
        out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        print(out.strip(), flush=True)


if __name__ == "__main__":
    main()
