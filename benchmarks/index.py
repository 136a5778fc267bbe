"""How long does indexing 50,000 files take? Writes small real files, scans them, writes the manifest, records the time.

Run: python benchmarks/index.py [--files 50000] [--repeats 3]. The mix is 80 % JPEG (256 px), 10 % PNG (128 px) and
10 % GeoTIFF (4 bands, uint16, 64 px, UTM), with one broken file in a hundred, each file with pixels of its own.
The files have just been written, so the page cache holds them: a cold disk adds its own time.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import rasterio
import simplejpeg
from PIL import Image
from rasterio.transform import from_origin

from terrasieve import keyed, manifest
from terrasieve.curate.scan import scan


def write_files(folder: Path, count: int) -> None:
    """Write ``count`` files into 20 class folders."""
    for i in range(count):
        random = keyed.numpy_generator(0, "benchmark index", i)
        kind = ("png", "tif")[i % 10 - 8] if i % 10 >= 8 else "jpg"
        path = folder / f"class_{i // 10 % 20:02d}" / f"{i:06d}.{kind}"
        path.parent.mkdir(exist_ok=True)
        pixels = random.integers(0, 255, (16, 16, 3), np.uint8)
        if kind == "jpg":
            path.write_bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels.repeat(16, 0).repeat(16, 1))))
        elif kind == "png":
            Image.fromarray(pixels.repeat(8, 0).repeat(8, 1)).save(path, compress_level=1)
        else:
            place = from_origin(300_000 + i % 300 * 640, 6_200_000 - i // 300 * 640, 10, 10)
            options = {"crs": f"EPSG:{32601 + i % 60}", "transform": place, "compress": "deflate"}
            with rasterio.open(path, "w", "GTiff", 64, 64, 4, dtype="uint16", **options) as file:
                file.write(random.integers(0, 4000, (4, 64, 64), np.uint16))
        if i % 100 == 0:
            path.write_bytes(path.read_bytes()[: i // 100 % 3 * 400])


def measure(folder: Path, workers: int, verify: str) -> tuple[dict[str, float], list[str]]:
    """Time a scan and the writing of its manifest, in seconds; return the summary's lines too."""
    started = time.perf_counter()
    result = scan(folder, workers=workers, verify=verify)
    scanned = time.perf_counter()
    manifest.write(result.table, folder.parent / "index.parquet")
    times = {"scan_s": round(scanned - started, 2), "write_s": round(time.perf_counter() - scanned, 2)}
    return times, result.summary.lines()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--files", type=int, default=50_000)
    arguments.add_argument("--repeats", type=int, default=3)
    given = arguments.parse_args()
    cores = len(os.sched_getaffinity(0))
    runs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "images"
        folder.mkdir()
        write_files(folder, given.files)
        for verify, workers in (("ends", cores), ("ends", 1), ("header", cores), ("decode", cores)):
            times = [measure(folder, workers, verify) for _ in range(given.repeats)]
            best, summary = min(times, key=lambda run: sum(run[0].values()))
            per_s = round(given.files / (best["scan_s"] + best["write_s"]))
            runs.append({"verify": verify, "workers": workers, **best, "files_per_s": per_s})
            print(runs[-1], flush=True)
    processor = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    date = datetime.now(UTC).date().isoformat()
    record = {
        "files": given.files,
        "date": date,
        "processor": processor,
        "cores": cores,
        "repeats": given.repeats,
        "load_1m": os.getloadavg()[0],  # more than the cores: others were at work, and the times are upper bounds
        "runs": runs,
        "summary": summary,
    }
    target = Path(__file__).parent / "results" / f"index_{date}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(record, indent=1) + "\n")
    print("\n".join(summary))


if __name__ == "__main__":
    main()
