"""What a scene of 10,000 x 10,000 pixels takes: embedded, segmented and searched for objects, each in its own process.

Run: python benchmarks/scene.py NAIP.tif -o DIR [--embed RUN] [--segment RUN] [--detect RUN]. The scene is the raster's
first three bands, mirrored from tile to tile, as a tiled GeoTIFF. Windows have --window pixels of the scene a side,
resampled to the network's images.
"""

import argparse
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window

SIDE_PX, BLOCK_PX = 10_000, 512
OUTPUTS = {
    "embed": ["features.tif", "--overlap", "0.25"],
    "segment": ["map.tif"],
    "detect": ["found.gpkg"],
}


def tiled_up(source: Path, out: Path) -> Path:
    """Write the scene, a row of blocks at a time."""
    with rasterio.open(source) as file:
        pixels, place = file.read([1, 2, 3]), {"crs": file.crs, "transform": file.transform}
    pixels = np.concatenate([pixels, pixels[:, ::-1]], 1)
    pixels = np.concatenate([pixels, pixels[:, :, ::-1]], 2)
    across = np.arange(SIDE_PX) % pixels.shape[2]
    layout = {"tiled": True, "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX, "compress": "deflate"}
    shape = {"width": SIDE_PX, "height": SIDE_PX, "count": 3, "dtype": pixels.dtype.name}
    with rasterio.open(out, "w", driver="GTiff", **shape, **layout, **place) as file:
        file.descriptions = ("red", "green", "blue")
        for top in range(0, SIDE_PX, BLOCK_PX):
            down = np.arange(top, min(top + BLOCK_PX, SIDE_PX)) % pixels.shape[1]
            file.write(pixels[:, down][:, :, across], window=Window(0, top, SIDE_PX, len(down)))
    return out


def measured(command: list[str]) -> str:
    """Run a command and return what it took."""
    began, process = time.monotonic(), subprocess.Popen(command)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    cpu_s, wall_s = used.ru_utime + used.ru_stime, time.monotonic() - began
    return f"{used.ru_maxrss / 2**20:.2f} GiB at the most, {wall_s / 60:.1f} min, {cpu_s / 60:.1f} CPU min"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--window", default="512")
    for name in OUTPUTS:
        parser.add_argument(f"--{name}", type=Path)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    scene = given.out / "scene.tif"
    if not scene.exists():
        tiled_up(given.source, scene)
    for name, how in OUTPUTS.items():
        run = getattr(given, name)
        if run is not None:
            command = ["terrasieve", "embed" if name == "embed" else "predict", str(run), str(scene)]
            command += ["-o", str(given.out / how[0]), *how[1:], "--window", given.window, "--bands", "red,green,blue"]
            print(" ".join(command), "->", measured(command), flush=True)
