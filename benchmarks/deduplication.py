"""How fast is deduplication? JPEG bytes to hashes, the join, verification, beside imagehash and faiss.

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
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import simplejpeg

from terrasieve import keyed
from terrasieve.curate import canonical, hamming, hashing, look
from terrasieve.curate.judge import JudgeSettings, judge_groups
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


def stored(files: list[bytes]) -> float:
    """Do to JPEG files all that the hash store does, from opening them on; return CPU seconds."""
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{n}.jpg" for n in range(len(files))]
        for path, data in zip(paths, files, strict=True):
            path.write_bytes(data)
        began = time.process_time()
        thumbs = np.stack([look.look(str(path), None, ["red", "green", "blue"])[2].thumb for path in paths])
        hashing.hashes(thumbs)
        canonical.turns(thumbs)
        return time.process_time() - began


def judged(pairs: int) -> dict[str, float]:
    """Verify pairs of an image and a copy cropped by one or two percent, in one thread."""
    places = sample_places(256, gsd_m=5.0, size_px=128, bands=RGB, dtype="uint8")
    scenes = [render(place).image.mean(axis=0).astype(np.uint8) for place in places]
    crops = [np.ascontiguousarray(scene[1:, 2:]) for scene in scenes]
    both = np.stack([hashing.thumbnail(image) for pair in zip(scenes, crops, strict=True) for image in pair])
    many = np.tile(np.arange(len(both)), 128)
    phash, thumbs = hashing.hashes(both).phash[many], both[many]
    ends, none, settings = np.arange(2, len(many) + 1, 2), np.zeros(0, np.int64), JudgeSettings(distance=16)
    judge_groups(ends[:2], phash[:4], thumbs[:4], none, settings)  # compiles
    done, began = 0, time.process_time()
    while done < pairs:
        found = judge_groups(ends, phash, thumbs, none, settings)
        done += len(ends)
    seconds = (time.process_time() - began) * pairs / done
    share = float((found.verdict[1::2] == 1).mean())
    return {"pairs": pairs, "cpu_s": round(seconds, 2), "duplicates": round(share, 3)}


def component(count: int) -> dict[str, float]:
    """Join and verify one group of ``count`` hashes, the images of which are all different."""
    draw = keyed.numpy_generator(0, "benchmark component")
    thumbs = draw.integers(0, 256, (count, 32, 32), dtype=np.uint8)
    phash = np.full((count, 8), 0xFEDCBA9876543210, np.uint64)
    for _ in range(3):
        phash ^= (np.uint64(1) << draw.integers(0, 64, count).astype(np.uint64))[:, None]
    hamming.join(made(1000, False), 8, 1)  # compiles
    began = time.process_time()
    hamming.join(np.ascontiguousarray(phash[:, 0]), 8, 1)
    joined = time.process_time()
    found = judge_groups(np.array([count]), phash, thumbs, np.zeros(0, np.int64), JudgeSettings())
    return {
        "hashes": count,
        "join_cpu_s": round(joined - began, 2),
        "verify_cpu_s": round(time.process_time() - joined, 2),
        "dropped": int((found.verdict == 1).sum()),
    }


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
    """Join hashes in this process; the best of five of up to two million."""
    hamming.join(made(1000, False), 8, threads)  # compiles
    hashes = made(count, uniform)
    seconds = []
    for _ in range(1 if count > 2_000_000 else 5):
        wall, cpu = time.perf_counter(), time.process_time()
        joined = hamming.join(hashes, 8, threads)
        seconds.append((time.process_time() - cpu, time.perf_counter() - wall))
    cpu_s, wall_s = min(seconds)
    return {
        "wall_s": round(wall_s, 2),
        "cpu_s": round(cpu_s, 2),
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


def table(record: dict[str, Any]) -> list[str]:
    """Return the figures as Markdown, beside those that are asked for."""
    runs = {(run["hashes"], run["kind"], run["threads"]): run for run in record["join"]}
    pairs, group = record["verify"], record["component"]
    rows = []
    for side_px, asked in ((512, "1,600"), (1024, "500")):
        of = record[f"jpeg_{side_px}px"]
        rows.append(
            (
                f"JPEG bytes to pHash, {side_px} px, a core",
                f"{of['ours_per_s']:,} a s",
                asked,
                f"imagehash {of['imagehash_per_s']}",
            )
        )
        rows.append((f"all that the store keeps, {side_px} px", f"{of['store_per_s']:,} a s", "", ""))
    rows.append(("verify 300,000 pairs, one thread", f"{pairs['cpu_s']} s", "600 s", ""))
    rows.append(("one group of 40,000: join, verify", f"{group['join_cpu_s']} s, {group['verify_cpu_s']} s", "", ""))
    asked_s = {1_000_000: "4 s", 13_000_000: "180 s on 2 cores, 1,500 MB"}
    for (count, kind, threads), run in runs.items():
        text = f"{run['wall_s']} s, {run['cpu_s']} s of CPU, peak {run['peak_mb']:,} MB"
        asked, other = asked_s.get(count, ""), ""
        if (count, kind, threads) == (100_000, "clean", 1):
            other = f"faiss flat {record['faiss_flat_100k_cpu_s']} s of CPU"
        if kind != "clean":
            asked, other = "1.2 x clean", f"{run['cpu_s'] / runs[count, 'clean', threads]['cpu_s']:.2f} x clean"
        rows.append((f"join {count:,}, d = 8, {kind}, {threads} threads", text, asked, other))
    head = (
        f"{record['processor']}, {os.cpu_count()} cores, {record['date']}, load {record['load_1m']:.1f} at the start."
    )
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return [head, "", "| work | ours | asked | beside it |", "|---|---|---|---|", *lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hashes", default="100000,1000000,13000000")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(join_once(int(given.one[0]), given.one[1] == "uniform_5", int(given.one[2]))))
        return
    record: dict[str, Any] = {"date": datetime.now(UTC).date().isoformat(), "load_1m": os.getloadavg()[0]}
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = (line.split(":")[1].strip() for line in lines if "model name" in line)
    record["processor"] = next(named, platform.processor())
    for side_px in (512, 1024):
        files = jpegs(side_px, given.images)
        record[f"jpeg_{side_px}px"] = {
            "mean_kb": round(sum(map(len, files)) / len(files) / 1000),
            "ours_per_s": rate(ours, files),
            "store_per_s": round(len(files) / median(stored(files) for _ in range(5))),
            "imagehash_per_s": attempt(lambda files=files: rate(imagehashes, files, 1)),
        }
        print(f"{side_px} px", record[f"jpeg_{side_px}px"], flush=True)
    record["verify"], record["component"] = judged(300_000), component(40_000)
    print(record["verify"], record["component"], flush=True)
    runs = []
    for count in map(int, given.hashes.split(",")):
        for kind in ("clean", "uniform_5"):
            for threads in (1, 2) if count < 5_000_000 else (2,):
                command = [sys.executable, __file__, "--one", str(count), kind, str(threads)]
                out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                runs.append({"hashes": count, "kind": kind, "threads": threads, **json.loads(out)})
                print(runs[-1], flush=True)
    target = Path(__file__).parent / "results" / f"deduplication_{record['date']}.json"
    before = json.loads(target.read_text())["join"] if target.exists() else []
    now = {run["hashes"] for run in runs}
    record["join"] = sorted(
        (run for run in [*before, *runs] if run in runs or run["hashes"] not in now), key=lambda run: run["hashes"]
    )
    record["faiss_flat_100k_cpu_s"] = attempt(lambda: faiss_flat(100_000))
    target.write_text(json.dumps(record, indent=1) + "\n")
    target.with_suffix(".md").write_text("\n".join(table(record)) + "\n")


if __name__ == "__main__":
    main()
