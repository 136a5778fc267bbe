"""Index the neighbours of 10 million synthetic images on one core: seconds of each part, a draw's time, peak memory.

Run: python benchmarks/neighbours.py DIR [--rows 10000000]. Writes DIR/places.parquet once, a manifest of images that
are not there: 2 million places of the Earth's land latitudes with five dates each, footprints of 264 px at 10 m in the
UTM zone's own grid (so that they lean in degrees), one in a thousand with a denser outline, one in a hundred without a
place. Then, in a process of its own, reads it as `terrasieve pretrain` does, indexes it, and draws; and draws from a
folder of a million images without a place.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from terrasieve import keyed, manifest
from terrasieve.bench.memory import high_water_kb

DATES, SIDE_PX, GSD_M, CHUNK = 5, 264, 10.0, 500_000
DRAWS = 2000


def write_manifest(path: Path, rows: int) -> None:
    """Write the manifest, chunk by chunk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = manifest.SCHEMA.with_metadata(
        manifest.version_metadata() | {b"geo": json.dumps(manifest.geo_metadata_of({"Polygon"}, None)).encode()}
    )
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for first in range(0, rows, CHUNK):
            writer.write_table(_rows(first, min(CHUNK, rows - first)).cast(schema), row_group_size=CHUNK)


def _rows(first: int, count: int) -> pa.Table:
    number = np.arange(first, first + count)
    place = keyed.numpy_generator(0, "places", first)
    sites = -(-count // DATES)
    lon = place.uniform(-180, 180, sites).repeat(DATES)[:count]
    lat = place.uniform(-56, 70, sites).repeat(DATES)[:count]
    half_lat = SIDE_PX * GSD_M / 2 / 111_195
    half_lon = half_lat / np.cos(np.radians(lat))
    lean = 0.03 * np.sin(np.radians(lat)) * ((lon % 6) - 3) / 3  # meridians converge by up to some degrees
    corners = np.empty((count, 5, 2))
    for k, (x, y) in enumerate(((-1, 1), (1, 1), (1, -1), (-1, -1), (-1, 1))):
        corners[:, k, 0] = lon + half_lon * (x - lean * y)
        corners[:, k, 1] = lat + half_lat * (y + lean * x)
    shapes = shapely.polygons(corners)
    dense = np.flatnonzero(number % 1000 == 0)
    shapes[dense] = shapely.segmentize(shapes[dense], half_lat / 8)
    lost = number % 100 == 7
    shapes[lost] = None
    nothing = np.where(lost, np.nan, 1.0)
    zone = np.char.add(
        "EPSG:", (np.where(lat >= 0, 32601, 32701) + ((lon + 180) // 6).clip(0, 59).astype(int)).astype(str)
    )
    columns = {
        "id": np.char.add("image", number.astype(str)),
        "uri": [
            f"s3://archive/site_{n // DATES // 1000:05d}/place_{n // DATES:08d}/{n % DATES}.tif"
            for n in number.tolist()
        ],
        "width": np.full(count, SIDE_PX, np.int32),
        "height": np.full(count, SIDE_PX, np.int32),
        "dtype": ["uint16"] * count,
        "gsd_m": np.full(count, GSD_M),
        "datetime": pa.array(
            1_500_000_000_000_000 + number % DATES * 90 * 86_400_000_000, pa.timestamp("us", tz="UTC")
        ),
        "geometry": pa.array(shapely.to_wkb(shapes), pa.binary()),
        "lon": pa.array(lon * nothing, from_pandas=True),
        "lat": pa.array(lat * nothing, from_pandas=True),
        "crs": pa.array(zone, mask=lost),
        "keep": np.ones(count, bool),
    }
    return _completed(columns, count)


def _completed(columns: dict[str, object], count: int) -> pa.Table:
    arrays = [
        pa.array(columns[field.name]).cast(field.type) if field.name in columns else pa.nulls(count, field.type)
        for field in manifest.SCHEMA
    ]
    return pa.table(arrays, schema=manifest.SCHEMA.remove_metadata())


def measure(path: Path) -> dict[str, float]:
    """Index and draw, in this process."""
    from terrasieve.data.pairs import Neighbours, PairSettings
    from terrasieve.data.places import find_places

    times, clock = {}, time.perf_counter
    began = clock()
    table = manifest.read(path)
    times["read_s"], times["read_peak_gb"] = clock() - began, high_water_kb() * 1024 / 1e9
    began, cpu = clock(), time.process_time()
    places = find_places(table)
    times["places_s"], times["places_cpu_s"] = clock() - began, time.process_time() - cpu
    times["places_peak_gb"] = high_water_kb() * 1024 / 1e9
    began, cpu = clock(), time.process_time()
    index = Neighbours(places, PairSettings())
    times["trees_s"], times["trees_cpu_s"] = clock() - began, time.process_time() - cpu
    rows = keyed.numpy_generator(0, "drawn").integers(0, len(places), DRAWS).tolist()
    cpu = time.process_time()
    for row in rows:
        index.draw(row, 0)
    times["draw_us"] = (time.process_time() - cpu) / DRAWS * 1e6
    times["peak_gb"] = high_water_kb() * 1024 / 1e9
    times["rows"] = len(places)
    kinds = index.census(np.array(rows[:200]))
    return {name: round(value, 2) for name, value in times.items()} | {f"of_200_{k}": v for k, v in kinds.items()}


def measure_folder(images: int = 1_000_000) -> float:
    """Return the CPU microseconds of a draw among images of one folder that have no place."""
    from terrasieve.data.pairs import Neighbours, PairSettings
    from terrasieve.data.places import find_places

    plain = {"uri": [f"/images/{n}.jpg" for n in range(images)], "keep": np.ones(images, bool)}
    index = Neighbours(find_places(_completed(plain, images)), PairSettings())
    rows = keyed.numpy_generator(0, "drawn").integers(0, images, DRAWS).tolist()
    cpu = time.process_time()
    for row in rows:
        index.draw(row, 0)
    return round((time.process_time() - cpu) / DRAWS * 1e6, 2)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--rows", type=int, default=10_000_000)
    arguments.add_argument("--measure", action="store_true", help="used by the script itself")
    given = arguments.parse_args()
    path = given.folder / f"places_{given.rows}.parquet"
    if given.measure:
        print(json.dumps(measure(path) | {"folder_draw_us": measure_folder()}))
        return
    if not path.exists():
        write_manifest(path, given.rows)
    command = [sys.executable, __file__, str(given.folder), "--rows", str(given.rows), "--measure"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True
    )
    date = datetime.now(UTC).date().isoformat()
    about = {"date": date, "cores": os.cpu_count(), "load_1m": os.getloadavg()[0], "python": platform.python_version()}
    record = about | json.loads(done.stdout)
    print(json.dumps(record, indent=1))
    target = Path(__file__).parent / "results" / f"neighbours_{date}.json"
    target.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
