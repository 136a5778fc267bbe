"""Planted truth: images with one altered copy each, and how many of the copies curation finds.

Run: python benchmarks/planted.py make DIR [--per-kind 200] writes DIR/images/{a,b}/*, JPEG but for what says otherwise,
and DIR/truth.csv (uri_a, uri_b, kind, dx_px, dy_px, shared_fraction), where a[y + dy, x + dx] = b[y, x]; dx_px, dy_px
are empty where no shift says it (resized, turned), and shared_fraction is of the smaller image's area. Every image has
one copy of one kind, so kinds do not help each other, and all others are its distractors. Sources: the procedural
Earth, and from the folder of real data (--data) UC Merced and crops of Planet, NAIP and Landsat scenes, whichever are
there; uint8 RGB, 160 to 512 px.

python benchmarks/planted.py score DIR CURATED prints recall and precision by kind of a folder that `terrasieve curate`
made from DIR/images, or that `... run DIR CURATED` made with the steps of deduplication alone; with the table that
`terrasieve overlaps CURATED/scan.parquet -o CURATED/overlaps.parquet` wrote, also what of it that finds, and where.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import rasterio
import simplejpeg
from PIL import Image
from planted_copies import KINDS, Copy, Pixels, shared_fraction
from planted_score import score

from terrasieve import keyed, manifest
from terrasieve.curate.exact import ExactSettings, exact
from terrasieve.curate.near import NearSettings, near
from terrasieve.curate.scan import scan
from terrasieve.curate.sparse import SparseSettings, sparse
from terrasieve.curate.step import Work
from terrasieve.curate.store import HashSettings, hash_images
from terrasieve.curate.verify import VerifySettings, verify
from terrasieve.imagery import raster
from terrasieve.imagery.earth import RGB, render, sample_place

SIDE_PX = 256
SCENE_PX = SIDE_PX + 64  # of the procedural Earth and the scenes, so that a crop can be shifted by 64


def earth(count: int) -> Iterator[tuple[str, Pixels]]:
    """Render scenes of the procedural Earth."""
    for index in range(count):
        gsd_m = (0.5, 2.0, 5.0, 10.0)[index % 4]
        place = sample_place(index, 7, gsd_m=gsd_m, size_px=SCENE_PX, bands=RGB, dtype="uint8")
        yield "earth", render(place, 7).image.transpose(1, 2, 0)


def ucmerced(folder: Path) -> Iterator[tuple[str, Pixels]]:
    """Yield UC Merced's images, the classes by turns."""
    paths = (folder / "ucmerced" / "Images").glob("*/*.jpg")
    for path in sorted(paths, key=lambda path: (path.name[-6:], path.name)):
        yield f"ucmerced_{path.stem}", raster.read(str(path)).array.transpose(1, 2, 0)


def tiles(folder: Path) -> Iterator[tuple[str, Pixels]]:
    """Cut scenes into tiles that do not overlap and are whole."""
    naip = "naip_timeseries_north_dakota/m_4709963_se_14_1_20180716.tif"
    singles = [*sorted((folder / "planet_harbor_scenes").glob("*.png")), folder / naip]
    singles += [
        folder / "landsat_scenes" / f"{name}.tif" for name in ("RGB.byte_bahamas", "landsat8_quebec_mosaic_cog1")
    ]
    stacks = [[path] for path in singles if path.is_file()]
    for scene in ("LC81070352015122LGN00", "LC81210442015044LGN00"):
        paths = [folder / "landsat8_rgb_scenes" / f"{scene}_B{band}.tif" for band in (4, 3, 2)]
        stacks += [paths] if all(path.is_file() for path in paths) else []
    for paths in stacks:
        planes = np.concatenate([raster.read(str(path)).array for path in paths])[:3]
        valid = (planes > 0).all(axis=0)
        if planes.dtype != np.uint8:
            low, high = np.percentile(planes[:, valid], [1, 99])
            planes = np.clip((planes - low) / (high - low) * 255, 0, 255).astype(np.uint8)
        for y in range(0, planes.shape[1] - SCENE_PX + 1, SCENE_PX):
            for x in range(0, planes.shape[2] - SCENE_PX + 1, SCENE_PX):
                if valid[y : y + SCENE_PX, x : x + SCENE_PX].mean() > 0.99:
                    part = planes[:, y : y + SCENE_PX, x : x + SCENE_PX]
                    yield f"{paths[0].stem}_{x}_{y}", part.transpose(1, 2, 0)


def scenes(data: Path | None, count: int) -> Iterator[tuple[str, Pixels]]:
    """Yield ``count`` scenes: half of UC Merced, then tiles of real scenes, then the procedural Earth."""
    given = 0
    if data is not None:
        for number, named in enumerate(ucmerced(data)):
            if number >= count // 2:
                break
            given += 1
            yield named
        for named in tiles(data):
            if given >= count:
                return
            given += 1
            yield named
    yield from earth(count - given)


def encode(image: Pixels, quality: int) -> bytes:
    data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality)
    return data


def write_pair(kind: str, made: Copy, stem: Path, draw: np.random.Generator) -> tuple[Path, Path]:
    """Write an image and its copy."""
    a, b = (stem.parent / side / f"{stem.name}.jpg" for side in "ab")
    data = encode(made[0], 92)
    a.write_bytes(data)
    if kind == "exact_bytes":
        b.write_bytes(data)
    elif kind == "exact_pixels":
        b = b.with_suffix(".png" if draw.integers(2) else ".tif")
        pixels = simplejpeg.decode_jpeg(data)
        if b.suffix == ".png":
            Image.fromarray(pixels).save(b)
        else:
            shape = {"width": pixels.shape[1], "height": pixels.shape[0], "count": 3, "dtype": "uint8"}
            with rasterio.open(b, "w", driver="GTiff", compress="deflate", photometric="rgb", **shape) as file:
                file.write(pixels.transpose(2, 0, 1))
    else:
        low = 40 if kind == "recompressed" else 75
        source = simplejpeg.decode_jpeg(data) if kind == "recompressed" else made[1]
        b.write_bytes(encode(source, int(draw.integers(low, 96))))
    return a, b


def make(folder: Path, data: Path | None, per_kind: int, seed: int) -> None:
    """Write images and truth.csv."""
    for side in "ab":
        (folder / "images" / side).mkdir(parents=True, exist_ok=True)
    rows = []
    kinds = list(KINDS)
    for number, (name, scene) in enumerate(scenes(data, per_kind * len(kinds))):
        kind = kinds[number % len(kinds)]
        draw = keyed.numpy_generator(seed, "planted", number)
        if name.startswith("ucmerced"):
            side = min(scene.shape[:2]) - (64 if kind.startswith("shift") else 0)
        else:
            side = SIDE_PX
        made = KINDS[kind](scene, side, draw)
        stem = folder / "images" / f"{number:05d}_{kind}_{name}"
        a, b = write_pair(kind, made, stem, draw)
        dx, dy = ("" if v is None else v for v in made[2:])
        rows.append([a.absolute(), b.absolute(), kind, dx, dy, round(shared_fraction(*made), 4)])
    with (folder / "truth.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["uri_a", "uri_b", "kind", "dx_px", "dy_px", "shared_fraction"])
        writer.writerows(rows)
    print(f"{len(rows):,} images with a copy each in {folder}")


def run(folder: Path, curated: Path) -> None:
    """Run the steps of deduplication alone over DIR/images."""
    curated.mkdir(parents=True, exist_ok=True)
    source = curated / "scan.parquet"
    if not source.exists():
        manifest.write(scan(folder / "images", labels="none").table, source)
    work = Work(curated)
    steps = [
        (hash_images, HashSettings()),
        (exact, ExactSettings()),
        (sparse, SparseSettings()),
        (near, NearSettings()),
        (verify, VerifySettings()),
    ]
    for step, settings in steps:
        target = curated / f"{step.__name__}.parquet"
        began = time.process_time()
        result = step(source, target, settings, work)
        print(
            step.__name__,
            dict(result.dropped),
            *result.notes,
            f"{time.process_time() - began:.1f} s of CPU",
            flush=True,
        )
        source = target
    shutil.copyfile(source, curated / "manifest.parquet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    maker = commands.add_parser("make", help="write images and truth.csv")
    maker.add_argument("folder", type=Path)
    maker.add_argument("--per-kind", type=int, default=200)
    maker.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of real data, if it is there")
    maker.add_argument("--seed", type=int, default=0)
    for name, words in (("run", "run the steps of deduplication"), ("score", "print recall and precision by kind")):
        command = commands.add_parser(name, help=words)
        command.add_argument("folder", type=Path)
        command.add_argument("curated", type=Path)
    given = parser.parse_args()
    if given.command == "make":
        make(given.folder, given.data if given.data.is_dir() else None, given.per_kind, given.seed)
    elif given.command == "run":
        run(given.folder, given.curated)
    else:
        print("\n".join(score(given.folder, given.curated)))


if __name__ == "__main__":
    main()
