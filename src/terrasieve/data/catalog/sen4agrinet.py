"""Sen4AgriNet: crops of Catalonia and France, Sentinel-2 time series. Source: Sykas et al., IEEE JSTARS 2022.

A netCDF-4 file per patch: a group per band with the array (time, y, x), and the groups labels and parcels. One image of
each patch is read: the date nearest 1 July. The masks hold crop codes; the 11 classes are those that the makers'
experiments use, every other code is not scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from terrasieve.data.catalog.copy import Copy
from terrasieve.data.catalog.entry import Entry, Item
from terrasieve.data.masks import MaskSettings
from terrasieve.imagery.derived import need_h5py
from terrasieve.keyed import numpy_generator

CODES = {
    "wheat": 110, "maize": 120, "sorghum": 140, "barley": 150, "rye": 160, "oats": 170, "grapes": 330,
    "rapeseed": 435, "sunflower": 438, "potatoes": 510, "peas": 770,
}  # fmt: skip
BANDS = ("B02", "B03", "B04", "B08", "B01", "B05", "B06", "B07", "B8A", "B09", "B10", "B11", "B12")
SHARES = (("train", 0.6), ("val", 0.8), ("test", 1.0))  # cumulative


def _items(copy: Copy) -> Iterator[Item]:
    paths = list(_files(copy))
    tiles = sorted({path.split("/")[-2] for path in paths})
    keys = tiles if copy.variant == "tiles" else paths
    split = dict(zip(sorted(keys), _drawn(len(keys)), strict=True))
    for path in paths:
        known = _known(copy, path)
        index = known.pop("index", 0)
        yield Item(
            f"{path}#array=/{{}}/{{}}&index={index}&stack={','.join(BANDS)}",
            split=split[path.split("/")[-2] if copy.variant == "tiles" else path],
            mask=f"{path}#array=/labels/labels",
            known=known,
        )


def _files(copy: Copy) -> Iterator[str]:
    top = copy.first("data", "netcdf")
    years = [f"{top}/{name}" if top else name for name in copy.folders(top or "") if name.isdigit()]
    if not years:
        copy.problems.append("there is no folder of a year, such as data/2019")
    for year in years:
        for tile in copy.folders(year):
            yield from copy.images(f"{year}/{tile}", (".nc",))


def _drawn(count: int) -> Sequence[str]:
    """Draw a split for ``count`` things in their order, 60/20/20 by key; of few, one at least to test and val."""
    order = numpy_generator(0, "catalog.sen4agrinet", count).permutation(count)
    ranks = (order + 0.5) / count
    drawn = [next(name for name, bound in SHARES if rank < bound) for rank in ranks]
    return drawn


def _known(copy: Copy, path: str) -> dict[str, Any]:
    """Return the place, the time and the index of the date nearest 1 July, as far as the file holds them."""
    name = path.rpartition("/")[2].split("_")
    year, tile = int(name[0]), name[1]
    h5py = need_h5py(path)
    try:
        with h5py.File(copy.root / path, "r") as file:
            group = file[BANDS[0]]
            known: dict[str, Any] = {"index": group[BANDS[0]].shape[0] // 2}
            if "time" in group:
                dates = _dates(group["time"])
                known["index"] = min(range(len(dates)), key=lambda i: abs(dates[i] - datetime(year, 7, 1)))
                known["datetime"] = dates[known["index"]]
            if "x" in group and "y" in group and tile[:2].isdigit():
                x, y = np.asarray(group["x"], float), np.asarray(group["y"], float)
                half = abs(x[1] - x[0]) / 2
                known["bounds"] = tuple(map(float, (x.min() - half, y.min() - half, x.max() + half, y.max() + half)))
                known["epsg"] = (32600 if tile[2] >= "N" else 32700) + int(tile[:2])
    except (OSError, KeyError, ValueError, IndexError) as error:
        copy.problems.append(f"{path} cannot be read: {error}")
        return {}
    return known


def _dates(time: Any) -> list[datetime]:
    """Read a time axis of the CF conventions: numbers of days, hours, minutes or seconds since a date."""
    units = time.attrs["units"]
    unit, _, since = (units.decode() if isinstance(units, bytes) else str(units)).partition(" since ")
    start = datetime.fromisoformat(since.strip()).replace(tzinfo=None)
    return [start + timedelta(**{unit.strip().lower(): float(value)}) for value in np.asarray(time)]


ENTRY = Entry(
    name="sen4agrinet",
    title="Sen4AgriNet (2022)",
    kind="segmentation",
    summary="11 crops in 366 px Sentinel-2 patches of Catalonia and France, 13 bands; variants random, tiles",
    classes=tuple(CODES),
    sensor="sentinel-2",
    gsd_m=10.0,
    size_px=366,
    licence="MIT (code); CC-BY-4.0 (data)",
    citation="Sykas et al., A Sentinel-2 Multiyear, Multicountry Benchmark Dataset for Crop Classification and "
    "Segmentation With Deep Learning, IEEE JSTARS 15, 2022, doi:10.1109/JSTARS.2022.3164771",
    page="https://github.com/Orion-AI-Lab/S4A",
    layout="""
sen4agrinet/
  data/2019/31TBF/2019_31TBF_patch_14_14.nc ...   (years 2019 and 2020; or netcdf/, or the years at the top)
""",
    marks=("data/2019", "data/2020", "netcdf/2019", "2019/31TBF", "2019"),
    reader=_items,
    variants=("random", "tiles"),
    masks={"": MaskSettings(classes=tuple(CODES), values=tuple(CODES.values()), others="ignore")},
    coordinates="x and y in the netCDF files",
    note="Read with h5py (pip install 'terrasieve[hdf5]'). Splits, 60/20/20 over patches or over whole tiles, are "
    "drawn by key: no list is published. Unsure: whether all files hold x and y of the pixels, which give the place.",
)
