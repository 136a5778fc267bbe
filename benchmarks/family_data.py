"""Data of the contrastive family's studies: what is pretrained on, and places that pretraining never sees.

Before ``benchmarks/family.py``, which runs ``recipes/studies/family_*.yaml`` over what this writes:

    terrasieve earth -o earth -n 3600 --size-px 40 --bands blue,green,red,red_edge,nir,swir1,swir2
    python benchmarks/family_data.py earth earth
    terrasieve index CHIPS/images -o chips.parquet
    python benchmarks/family_data.py chips chips.parquet buenos_aires

Each folder gets ``pretrain.parquet`` (also a half and an eighth of it), ``all.parquet`` and ``places.csv``:
of every image its part and its class under every task. Parts: train = what is pretrained on, and what k-NN and probes
look at; blocks = held-out cells between the others; shift = a whole held-out region; buffer = nearer to a test image
than the buffer, left out.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import rasterio
import typer
from sklearn.neighbors import BallTree

from terrasieve import keyed, manifest
from terrasieve.imagery.sphere import EARTH_RADIUS_KM

app = typer.Typer(add_completion=False)
CENTRE = (-58.3816, -34.6037)  # of Buenos Aires, longitude and latitude
BLOCK_DEG, TEST_SHARE, CLASSES = 0.1, 0.25, 5
Tasks = dict[str, np.ndarray]


@app.command()
def earth(folder: Path, east_deg: float = 90.0, buffer_km: float = 100.0) -> None:
    """Divide the procedural Earth: its own 5-degree blocks, and everything east of a longitude as the shift.

    Of the shift every second image is left out: evaluation is what a study of small runs spends most of its time on.
    """
    table = manifest.read(folder / "manifest.parquet")
    east = np.flatnonzero(places(table)[0] >= east_deg)
    table = table.take(np.setdiff1d(np.arange(table.num_rows), east[1::2]))
    shift = places(table)[0] >= east_deg
    blocks = np.array([part == "test" for part in table["split"].to_pylist()]) & ~shift
    write(folder, table, {"blocks": blocks, "shift": shift}, buffer_km, {"scene": table["label"].to_numpy()})


@app.command()
def chips(source: Path, folder: Path, buffer_km: float = 2.0) -> None:
    """Divide the Buenos Aires chips by 0.1-degree cells, and make the classes that the data do not have.

    All are fifths, with edges from the pretraining places. ``texture``: the standard deviation within a chip over its
    mean, averaged over bands (built-up ground is rough, fields are smooth). ``green``: the excess green index,
    (2 green - red - blue) / their sum. ``centre``: the distance to the city's centre, which no pixel shows.
    The fourth band is left alone: it is 0 throughout in 1,124 of the 2,000 files.
    """
    table = manifest.read(source)
    folder.mkdir(parents=True, exist_ok=True)
    cells = np.floor(np.stack(places(table), axis=1) / BLOCK_DEG).astype(int) + 4096
    blocks = np.array([keyed.numpy_generator(0, "family.block", *cell).random() < TEST_SHARE for cell in cells])
    measured = pixel_measures(table["uri"].to_pylist())
    measured["centre"] = kilometres(places(table), np.array([CENTRE[0]]), np.array([CENTRE[1]]))
    empty = np.isnan(measured["texture"])
    print(f"{empty.sum()} chips without data are left out")
    table, blocks = table.filter(pa.array(~empty)), blocks[~empty]
    measured = {name: values[~empty] for name, values in measured.items()}
    train = ~blocks
    fifths = {name: np.quantile(values[train], np.arange(1, CLASSES) / CLASSES) for name, values in measured.items()}
    tasks = {name: np.char.mod("fifth %d", np.searchsorted(fifths[name], v) + 1) for name, v in measured.items()}
    write(folder, table, {"blocks": blocks}, buffer_km, tasks)


@app.command()
def window(source: Path, folder: Path, size_px: int = 30) -> None:
    """Make the manifests of a divided folder again, of the middle of each image."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("pretrain", "all"):
        rows = manifest.read(source / f"{name}.parquet").to_pylist()
        for row in rows:
            x, y = ((row[side] - size_px) // 2 for side in ("width", "height"))
            row |= {"window": [x, y, size_px, size_px], "width": size_px, "height": size_px}
            row["id"] = manifest.row_id(row["uri"], row["window"])
        manifest.write(manifest.rows_to_table(rows), folder / f"{name}.parquet")
    shutil.copyfile(source / "places.csv", folder / "places.csv")


def places(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Return longitude and latitude of all rows, degrees."""
    lon, lat = (table[name].to_numpy(zero_copy_only=False).astype(float) for name in ("lon", "lat"))
    return lon, lat


def kilometres(of: tuple[np.ndarray, np.ndarray], lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Return the great-circle distance of every place to the nearest of some others."""
    tree = BallTree(np.radians(np.stack([lat, lon], axis=1)), metric="haversine")
    return tree.query(np.radians(np.stack([of[1], of[0]], axis=1)))[0][:, 0] * EARTH_RADIUS_KM


def pixel_measures(uris: list[str]) -> Tasks:
    """Return texture and excess green of chips, whose first bands are blue, green, red; NaN where one is all 0."""
    found: dict[str, list[float]] = {"texture": [], "green": []}
    for uri in uris:
        with rasterio.open(uri) as file:
            blue, green, red = pixels = file.read([1, 2, 3]).astype(float)
        if not pixels.any(axis=(1, 2)).all():
            pixels = np.full_like(pixels, np.nan)
        found["texture"].append(float((pixels.std(axis=(1, 2)) / pixels.mean(axis=(1, 2))).mean()))
        found["green"].append(float((2 * green - red - blue).sum() / pixels.sum()))
    return {name: np.array(values) for name, values in found.items()}


def write(folder: Path, table: pa.Table, held: Tasks, buffer_km: float, tasks: Tasks) -> None:
    """Write what is pretrained on, everything, and each image's part and classes."""
    lon, lat = places(table)
    test = np.any(list(held.values()), axis=0)
    part = np.where(kilometres((lon, lat), lon[test], lat[test]) < buffer_km, "buffer", "train").astype(object)
    for name, rows in held.items():
        part[rows] = name
    print({name: int((part == name).sum()) for name in ("train", "buffer", *held)})
    train = np.flatnonzero(part == "train")
    for name, share in {"pretrain": 1, "pretrain_half": 2, "pretrain_eighth": 8}.items():
        drawn = keyed.numpy_generator(0, "family.share").permutation(train)[: len(train) // share]
        manifest.write(table.take(np.sort(drawn)), folder / f"{name}.parquet")
    manifest.write(table, folder / "all.parquet")
    columns = {"uri": table["uri"], "lon": lon, "lat": lat, "part": part, **tasks}
    pa.csv.write_csv(pa.table({name: pa.array(values) for name, values in columns.items()}), folder / "places.csv")


if __name__ == "__main__":
    app()
