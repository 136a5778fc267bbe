"""BigEarthNet v2 (reBEN): 19 labels in Sentinel-2 and Sentinel-1 patches. Source: Clasen et al., IGARSS 2025.

Patches lie in a folder each, one file per band; ``metadata.parquet`` gives labels, split and the patch of Sentinel-1.
Bands of 20 and 60 m are brought to 120 px by the nearest pixel.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from terrasieve.data.catalog.copy import Copy
from terrasieve.data.catalog.entry import Archive, Entry, Item
from terrasieve.data.catalog.times import time_in

CLASSES = (
    "Urban fabric", "Industrial or commercial units", "Arable land", "Permanent crops", "Pastures",
    "Complex cultivation patterns",
    "Land principally occupied by agriculture, with significant areas of natural vegetation", "Agro-forestry areas",
    "Broad-leaved forest", "Coniferous forest", "Mixed forest", "Natural grassland and sparsely vegetated areas",
    "Moors, heathland and sclerophyllous vegetation", "Transitional woodland, shrub", "Beaches, dunes, sands",
    "Inland wetlands", "Coastal wetlands", "Inland waters", "Marine waters",
)  # fmt: skip
S2 = ("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B11", "B12", "B8A", "B01", "B09")  # 10 m first
S1 = ("VV", "VH")
PARTS = {"train": "train", "validation": "val", "test": "test"}
ZENODO = "https://zenodo.org/records/10891137/files/"


def _items(copy: Copy) -> Iterator[Item]:
    if not copy.has("metadata.parquet"):
        copy.problems.append("there is no metadata.parquet, which gives every patch its labels and its split")
        return
    try:
        table = pq.read_table(copy.root / "metadata.parquet", columns=["patch_id", "labels", "split", "s1_name"])
    except (pa.ArrowException, OSError, KeyError) as error:
        copy.problems.append(f"metadata.parquet cannot be read: {error}")
        return
    radar = copy.variant == "s1"
    for patch, labels, split, s1_name in zip(*(column.to_pylist() for column in table.columns), strict=True):
        name = s1_name if radar else patch
        # Tiles of Sentinel-2 end before the patch's column and row, those of Sentinel-1 before tile, column and row.
        tile = name.rsplit("_", 3 if radar else 2)[0]
        top = "BigEarthNet-S1" if radar else "BigEarthNet-S2"
        uri = f"{top}/{tile}/{name}/{name}_{{}}.tif#stack={','.join(S1 if radar else S2)}"
        when = {"datetime": time_in(name), "sensor": "sentinel-1" if radar else "sentinel-2"}
        yield Item(uri, split=PARTS.get(split, split), labels=tuple(labels), known=when)


ENTRY = Entry(
    name="bigearthnet-v2",
    title="BigEarthNet v2 / reBEN (2025)",
    kind="multilabel",
    summary="19 CORINE labels of 120 px Sentinel-2 L2A patches, 12 bands; variant s1: Sentinel-1 VV, VH",
    classes=CLASSES,
    sensor="sentinel-2",
    gsd_m=10.0,
    size_px=120,
    licence="CDLA-Permissive-1.0",
    citation="Clasen et al., reBEN: Refined BigEarthNet Dataset, IGARSS 2025, arXiv:2407.03653",
    page="https://bigearth.net",
    archives=(
        Archive("BigEarthNet-S2.tar.zst", ZENODO + "BigEarthNet-S2.tar.zst", "2245ed2d1a93f6ce637d839bc856396e"),
        Archive("BigEarthNet-S1.tar.zst", ZENODO + "BigEarthNet-S1.tar.zst", "a55eaa2cdf6a917e296bd6601ec1e348"),
        Archive("metadata.parquet", ZENODO + "metadata.parquet"),
    ),
    layout="""
bigearthnet-v2/
  metadata.parquet                                     (patch_id, labels, split, s1_name, ...)
  BigEarthNet-S2/TILE/PATCH/PATCH_B01.tif ... _B12.tif
  BigEarthNet-S1/TILE/PATCH/PATCH_VH.tif  PATCH_VV.tif   (variant s1 alone)
""",
    marks=("metadata.parquet", "BigEarthNet-S2", "BigEarthNet-S1"),
    reader=_items,
    variants=("s2", "s1"),
    counts={"": {"train": 237871, "val": 122342, "test": 119825}},
    coordinates="the GeoTIFFs",
    torchgeo="BigEarthNetV2",
    note="Splits: the column split of metadata.parquet. Patches with snow, cloud or shadow stand in another file of "
    "the makers and are no part of it.",
)
