"""Overlap: recall, offsets and precision on planted crops by shared area and class, and what it costs.

Run: python benchmarks/overlap.py DIR [--data ../shared/data]: cuts two crops of 160 px from each image of UC Merced and
of 256 px from procedural scenes of 440 px, which share 10, 20, 30 or 50 % of their area, along one axis or both; both
are compressed anew (JPEG 60 to 95), the second with another gamma or brightness. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import simplejpeg

from terrasieve import keyed, manifest
from terrasieve.curate.engine import Local
from terrasieve.curate.overlap import OverlapSettings, find_overlaps
from terrasieve.curate.scan import scan
from terrasieve.curate.step import Work
from terrasieve.imagery import raster
from terrasieve.imagery.earth import RGB, render, sample_place

SHARES = (0.1, 0.2, 0.3, 0.5)
PERIODIC = ("agricultural", "runway", "beach", "parkinglot")


def scenes(data: Path) -> Iterator[tuple[str, np.ndarray, int]]:
    """Yield (class, image, side of the crops)."""
    for path in sorted((data / "ucmerced" / "Images").glob("*/*.jpg")):
        image = raster.read(str(path)).array.transpose(1, 2, 0)
        if min(image.shape[:2]) >= 256:
            yield path.parent.name, image, 160
    for k in range(200):
        place = sample_place(k, 21, gsd_m=(0.5, 2.0, 5.0, 10.0)[k % 4], size_px=440, bands=RGB, dtype="uint8")
        yield "procedural Earth", render(place, 21).image.transpose(1, 2, 0), 256


def offset(share: float, side: int, room: int, draw: np.random.Generator) -> tuple[int, int]:
    """Draw a shift that leaves this share of the area: (1 - |dx| / side) (1 - |dy| / side)."""
    most = room / side
    least = max(1 - share / (1 - most), 0) if share < 1 - most else 0.0
    across = draw.uniform(min(least, most), min(1 - share, most))
    down = min(1 - share / (1 - across), most)
    return tuple(int(round(part * side) * draw.choice([-1, 1])) for part in (across, down))  # type: ignore[return-value]


def toned(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    if draw.integers(2):
        return np.asarray((image / 255) ** draw.uniform(0.7, 1.4) * 255).astype(np.uint8)
    return np.clip(image * draw.uniform(0.7, 1.2) + draw.uniform(-20, 20), 0, 255).astype(np.uint8)


def plant(folder: Path, data: Path) -> dict[tuple[str, str], tuple[str, float, int, int]]:
    """Write crops; return class, shared fraction and offset of each pair."""
    folder.mkdir(parents=True, exist_ok=True)
    truth = {}
    for number, (name, image, side) in enumerate(scenes(data)):
        draw = keyed.numpy_generator(0, "overlap benchmark", number)
        room = min(image.shape[:2]) - side
        share = SHARES[number % len(SHARES)]
        dx, dy = offset(share, side, room, draw)
        x, y = max(-dx, 0), max(-dy, 0)
        crops = image[y : y + side, x : x + side], toned(image[y + dy : y + dy + side, x + dx : x + dx + side], draw)
        paths = [folder / f"{number:05d}_{name.replace(' ', '_')}_{letter}.jpg" for letter in "ab"]
        for path, crop in zip(paths, crops, strict=True):
            quality = int(draw.integers(60, 96))
            path.write_bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(crop), quality=quality))
        shared = (1 - abs(dx) / side) * (1 - abs(dy) / side)
        truth[str(paths[0].absolute()), str(paths[1].absolute())] = (name, shared, dx, dy)
    return truth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    given = parser.parse_args()
    truth = plant(given.folder / "images", given.data)
    path = given.folder / "crops.parquet"
    manifest.write(scan(given.folder / "images", labels="none").table, path)
    started = time.process_time()
    table = find_overlaps(path, OverlapSettings(least_shared=0.08), Work(given.folder, Local(1)))
    seconds = time.process_time() - started
    found = {(row["uri_a"], row["uri_b"]): row for row in table.to_pylist()}
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for pair, (name, shared, dx, dy) in truth.items():
        near = min(SHARES, key=lambda share: abs(share - shared))
        kind = "UC Merced" if name != "procedural Earth" else name
        for row in [f"{kind}, {near:.0%}"] + [f"{name}, 20 % and more"] * (shared >= 0.195 and name in PERIODIC):
            counts[row]["planted"] += 1
            if pair in found:
                off = max(abs(found[pair]["dx_px"] - dx), abs(found[pair]["dy_px"] - dy))
                counts[row].update(found=1, exact=int(off == 0), near=int(off <= 1))
    print("| crops, shared area | planted | found | offset exact | within 1 px |\n|---|---:|---:|---:|---:|")
    for row, count in sorted(counts.items()):
        n, hit = count["planted"], max(count["found"], 1)
        print(f"| {row} | {n} | {count['found'] / n:.1%} | {count['exact'] / hit:.1%} | {count['near'] / hit:.1%} |")
    others = [row for pair, row in found.items() if pair not in truth]
    print(f"\n{len(found) - len(others)} planted pairs found and {len(others)} others, in {seconds:.1f} s of CPU.")
    for row in others:
        names = " ".join(Path(row[name]).stem for name in ("uri_a", "uri_b"))
        print(f"  {names} {row['dx_px']} {row['dy_px']} {row['shared_fraction']:.2f} {row['score']:.2f}")


if __name__ == "__main__":
    main()
