"""So2Sat LCZ42: local climate zones of cities. Source: Zhu et al., IEEE GRSM 2020; versions 2, 3 and 4.

HDF5 files of all images of a part (sen2: N x 32 x 32 x 10 reflectances, label: N x 17). Version 4 gives each image's
place in *_geo.h5 (epsg, tfw: the six lines of a world file), in the order of version 2, whose parts are the variant
culture-10.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from terrasieve.data.catalog.copy import Copy
from terrasieve.data.catalog.entry import Archive, Entry, Item
from terrasieve.imagery.derived import need_h5py

CLASSES = (
    "Compact high rise", "Compact mid rise", "Compact low rise", "Open high rise", "Open mid rise", "Open low rise",
    "Lightweight low rise", "Large low rise", "Sparsely built", "Heavy industry", "Dense trees", "Scattered trees",
    "Bush, scrub", "Low plants", "Bare rock or paved", "Bare soil or sand", "Water",
)  # fmt: skip
BANDS = ("blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08", "swir1", "swir2")
SIDE = 32
PARTS = {"train": "training", "val": "validation", "test": "testing"}


def _items(copy: Copy) -> Iterator[Item]:
    folder = copy.variant.replace("-", "_")
    # Version 2 has its three parts at the top; the parts of version 3 lie in a folder per variant and have no val.
    old = copy.variant == "culture-10" and not copy.has(folder) and copy.has("training.h5")
    for split, part in PARTS.items():
        path = f"{part}.h5" if old else f"{folder}/{part}.h5"
        if split == "val" and not old:
            continue
        if not copy.has(path):
            copy.problems.append(f"there is no {path}")
            continue
        labels, places = _read(copy, path)
        for index, number in enumerate(labels):
            known = {} if places is None else places[index]
            yield Item(f"{path}#array=/sen2&index={index}", split=split, label=CLASSES[number], known=known)


def _read(copy: Copy, path: str) -> tuple[np.ndarray, list[dict[str, Any]] | None]:
    """Return the class number of each image of a file, and its place where a file of places lies beside it."""
    h5py = need_h5py(path)
    try:
        with h5py.File(copy.root / path, "r") as file:
            labels = np.asarray(file["label"]).argmax(1)
        beside = path.replace(".h5", "_geo.h5")
        if not copy.has(beside):
            return labels, None
        with h5py.File(copy.root / beside, "r") as file:
            epsg, tfw = np.asarray(file["epsg"]).ravel(), np.asarray(file["tfw"])
    except (OSError, KeyError) as error:
        copy.problems.append(f"{path} or the file of places beside it cannot be read: {error}")
        return np.empty(0, np.int64), None
    if len(epsg) != len(labels):
        copy.problems.append(f"{beside} gives the places of {len(epsg):,} images, {path} holds {len(labels):,}")
        return labels, None
    return labels, [{"epsg": int(code), "bounds": _bounds(*lines)} for code, lines in zip(epsg, tfw, strict=True)]


def _bounds(a: float, _d: float, _b: float, e: float, x: float, y: float) -> tuple[float, float, float, float]:
    """Return left, bottom, right, top of a world file's lines; x, y are the centre of the first pixel."""
    left, top = x - a / 2, y - e / 2
    return float(left), float(top + SIDE * e), float(left + SIDE * a), float(top)


ENTRY = Entry(
    name="so2sat",
    title="So2Sat LCZ42 (2020)",
    kind="multiclass",
    summary="17 local climate zones in 32 px Sentinel-2 chips of 52 cities, 10 bands",
    classes=CLASSES,
    bands=BANDS,
    sensor="sentinel-2",
    gsd_m=10.0,
    size_px=SIDE,
    licence="CC-BY-4.0",
    citation="Zhu et al., So2Sat LCZ42, IEEE GRSM 8(3), 2020, doi:10.1109/MGRS.2020.2964708",
    page="https://github.com/zhu-xlab/So2Sat-LCZ42",
    archives=(
        Archive("random/training.h5", md5="94e2e2e667b406c2adf61e113b42204e"),
        Archive("random/testing.h5", md5="1e15c425585ce816342d1cd779d453d8"),
        Archive("block/training.h5", md5="a91d6150e8b059dac86105853f377a11"),
        Archive("block/testing.h5", md5="6414af1ec33ace417e879f9c88066d47"),
        Archive("culture_10/training.h5", md5="702bc6a9368ebff4542d791e53469244"),
        Archive("culture_10/testing.h5", md5="58335ce34ca3a18424e19da84f2832fc"),
    ),
    layout="""
so2sat/
  random/training.h5  random/testing.h5          (version 3: variants random, block, culture-10)
  block/ ...  culture_10/ ...
  training.h5  validation.h5  testing.h5         (version 2 or 4 serves for culture-10, too)
  training_geo.h5  validation_geo.h5  ...        (places, version 4; optional)
""",
    marks=("random/training.h5", "block/training.h5", "culture_10/training.h5", "training.h5", "testing.h5"),
    reader=_items,
    variants=("random", "block", "culture-10"),
    coordinates="*_geo.h5 of version 4 (culture-10)",
    note="Read with h5py (pip install 'terrasieve[hdf5]'), image by image from the HDF5 files. Sentinel-1 is not read. "
    "Version 2 publishes 352,366 / 24,119 / 24,188 images. Places exist for version 2's order alone.",
)
