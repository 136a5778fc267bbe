"""How fast is deduplication? JPEG bytes to hashes, and the near-duplicate join, beside imagehash and faiss.

Run: python benchmarks/deduplication.py [--hashes 100000,1000000,13000000]; with `uv run --with imagehash --with
faiss-cpu` the others are measured too, on what they can do. The hashes are uniform, with 5 % of them within 8 bits of
another; `uniform_5` also makes 5 % of them near-uniform images, within 3 bits of one another. A process each, so that
peaks of memory are its own.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from statistics import median

import numpy as np
import simplejpeg

from terrasieve import keyed
from terrasieve.curate import hamming, hashing
from terrasieve.imagery.earth import RGB, render, sample_places


def jpegs(side_px: int, count: int) -> list[bytes]:
    """Render scenes of the procedural Earth and compress them at quality 90."""
    places = sample_places(count, gsd_m=5.0, size_px=side_px, bands=RGB, dtype="uint8")
    pixels = [np.ascontiguousarray(render(place).image.transpose(1, 2, 0)) for place in places]
    return [simplejpeg.encode_jpeg(image, quality=90) for image in pixels]


def ours(files: list[bytes]) -> np.ndarray:
    """Hash JPEG files."""
    thumbs = [
        hashing.thumbnail(
            simplejpeg.decode_jpeg(data, "GRAY", fastdct=True, fastupsample=True, min_height=32, min_width=32)[..., 0]
        )
        for data in files
    ]
    return hashing.hashes(np.stack(thumbs)).phash


def imagehashes(files: list[bytes]) -> list[object]:
    """Hash JPEG files with imagehash."""
    import imagehash
    from PIL import Image

    return [imagehash.phash(Image.open(BytesIO(data))) for data in files]


def rate(work: Callable[[list[bytes]], object], files: list[bytes], repeats: int = 5) -> float:
    """Return images per CPU second, the median of ``repeats``."""
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        work(files)
        seconds.append(time.process_time() - began)
    return round(len(files) / median(seconds))


def made(count: int, uniform: bool) -> np.ndarray:
    """Draw hashes with planted near-duplicates."""
    draw = keyed.numpy_generator(0, "benchmark hashes", count)
    hashes = draw.integers(0, 2**64, count, dtype=np.uint64)
    few = count // 20
    planted = hashes[draw.integers(few, count, few)]
    for _ in range(4):
        planted ^= np.uint64(1) << draw.integers(0, 64, few).astype(np.uint64)
    hashes[:few] = planted
    if uniform:
        hashes[-few:] = 0xFEDCBA9876543210
        for _ in range(3):
            hashes[-few:] ^= np.uint64(1) << draw.integers(0, 64, few).astype(np.uint64)
    return hashes


def join_once(count: int, uniform: bool, threads: int) -> dict[str, float]:
    """Join hashes in this process."""
    hamming.join(made(1000, False), 8, threads)  # compiles
    hashes = made(count, uniform)
    wall, cpu = time.perf_counter(), time.process_time()
    joined = hamming.join(hashes, 8, threads)
    return {
        "wall_s": round(time.perf_counter() - wall, 2),
        "cpu_s": round(time.process_time() - cpu, 2),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "pairs": len(joined.pairs),
    }


def faiss_flat(count: int) -> float:
    """Time faiss's exact range search, d <= 8, over ``count`` hashes, one thread, CPU seconds."""
    import faiss

    faiss.omp_set_num_threads(1)
    codes = made(count, False).view(np.uint8).reshape(-1, 8)
    index = faiss.IndexBinaryFlat(64)
    index.add(codes)
    began = time.process_time()
    index.range_search(codes, 9)  # strictly below
    return round(time.process_time() - began, 2)


def attempt(work: Callable[[], object]) -> object:
    """Do the work, or say which library is missing."""
    try:
        return work()
    except ImportError as error:
        return f"{error.name} is not installed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hashes", default="100000,1000000,13000000")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(join_once(int(given.one[0]), given.one[1] == "uniform_5", int(given.one[2]))))
        return
    record: dict[str, object] = {"date": datetime.now(UTC).date().isoformat(), "load_1m": os.getloadavg()[0]}
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = (line.split(":")[1].strip() for line in lines if "model name" in line)
    record["processor"] = next(named, platform.processor())
    for side_px in (512, 1024):
        files = jpegs(side_px, given.images)
        record[f"jpeg_{side_px}px"] = {
            "mean_kb": round(sum(map(len, files)) / len(files) / 1000),
            "ours_per_s": rate(ours, files),
            "imagehash_per_s": attempt(lambda files=files: rate(imagehashes, files, 1)),
        }
        print(f"{side_px} px", record[f"jpeg_{side_px}px"], flush=True)
    runs = []
    for count in map(int, given.hashes.split(",")):
        for kind in ("clean", "uniform_5"):
            for threads in (1, 2):
                command = [sys.executable, __file__, "--one", str(count), kind, str(threads)]
                out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                runs.append({"hashes": count, "kind": kind, "threads": threads, **json.loads(out)})
                print(runs[-1], flush=True)
    record["join"] = runs
    record["faiss_flat_100k_cpu_s"] = attempt(lambda: faiss_flat(100_000))
    target = Path(__file__).parent / "results" / f"deduplication_{record['date']}.json"
    target.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
