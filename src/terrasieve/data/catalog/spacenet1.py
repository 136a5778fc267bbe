"""SpaceNet 1: buildings of Rio de Janeiro. Source: Van Etten, Lindenbaum & Bacastow, arXiv:1807.01232.

Outlines are GeoJSON in degrees; a mask is drawn of them on each image's pixels when it is read. The test part has no
published outlines, so papers divide the training part: 5,000 images to train, the rest to test, drawn by key here.
"""

from __future__ import annotations

from collections.abc import Iterator

from terrasieve.data.catalog.copy import Copy
from terrasieve.data.catalog.entry import Archive, Entry, Item
from terrasieve.data.catalog.folders import shared
from terrasieve.data.masks import MaskSettings

TRAINED = 5000 / 6940


def _items(copy: Copy) -> Iterator[Item]:
    top = "train/" if copy.has("train") else ""
    folder, outlines = f"{top}{copy.variant}", copy.first(f"{top}geojson", f"{top}vectordata/geojson")
    if outlines is None:
        copy.problems.append(f"there is no folder {top}geojson")
    found = []
    for path in copy.paired(folder, outlines or "", ("Geo_", f"{copy.variant}_"), ".tif") if outlines else ():
        name = path.rpartition("/")[2].replace(f"{copy.variant}_", "Geo_").replace(".tif", ".geojson")
        found.append(Item(path, mask=f"{outlines or 'geojson'}/{name}#burn=1&like={path}"))
    if not found:
        copy.problems.append(f"{folder}: the folder is missing or empty")
    yield from shared("spacenet1", found, TRAINED)


ENTRY = Entry(
    name="spacenet1",
    title="SpaceNet 1 (2016)",
    kind="segmentation",
    summary="buildings in WorldView-2 images of Rio de Janeiro, pan-sharpened RGB; variant 8band: 8 bands at 1 m",
    classes=("background", "building"),
    gsd_m=0.5,
    licence="CC-BY-SA-4.0",
    citation="Van Etten, Lindenbaum & Bacastow, SpaceNet: A Remote Sensing Dataset and Challenge Series, 2018, "
    "arXiv:1807.01232",
    page="https://spacenet.ai/spacenet-buildings-dataset-v1/",
    archives=(
        Archive("SN1_buildings_train_AOI_1_Rio_3band.tar.gz"),
        Archive("SN1_buildings_train_AOI_1_Rio_geojson_buildings.tar.gz"),
    ),
    layout="""
spacenet1/
  SN1_buildings/train/3band/3band_AOI_1_RIO_img1.tif ... img6940.tif
  SN1_buildings/train/8band/8band_AOI_1_RIO_img1.tif ...         (variant 8band alone)
  SN1_buildings/train/geojson/Geo_AOI_1_RIO_img1.geojson ...     (or vectordata/geojson)
""",
    marks=("train/3band", "train/8band", "train/geojson", "3band"),
    reader=_items,
    variants=("3band", "8band"),
    counts={"": {"": 6940}},
    masks={"": MaskSettings(classes=("background", "building"))},
    coordinates="the GeoTIFFs",
    torchgeo="SpaceNet1",
    note="From the bucket s3://spacenet-dataset, folder spacenet/SN1_buildings (aws s3 cp --no-sign-request). Pixels "
    "outside the imagery are black. The split is drawn by key.",
)
