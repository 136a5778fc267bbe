"""EuroSAT: Sentinel-2 land use in ten classes. Source: Helber et al., JSTARS 2019; splits of Neumann et al., 2019.

The splits are lists of names, published with the checksums given here; without them the images have no split and a
keyed draw makes one. Band 8A stands last in the files, behind band 12.
"""

from __future__ import annotations

from collections.abc import Iterator

from terrasieve.data.catalog.copy import Copy
from terrasieve.data.catalog.entry import Archive, Entry, Item
from terrasieve.data.catalog.folders import numbered, split_by

COUNTS = {
    "AnnualCrop": 3000, "Forest": 3000, "HerbaceousVegetation": 3000, "Highway": 2500, "Industrial": 2500,
    "Pasture": 2000, "PermanentCrop": 2500, "Residential": 3000, "River": 2500, "SeaLake": 3000,
}  # fmt: skip
BANDS = (
    "coastal", "blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir09", "cirrus", "swir1", "swir2",
    "nir08",
)  # fmt: skip
NESTED = "ds/images/remote_sensing/otherDatasets/sentinel_2/tif"  # so in EuroSATallBands.zip
SPLITS = "https://hf.co/datasets/torchgeo/eurosat/resolve/main/"


def _items(copy: Copy) -> Iterator[Item]:
    images = numbered(COUNTS, "{c}_{i}", (NESTED, "EuroSAT_MS", ""), endings=(".tif",))
    yield from split_by({part: f"eurosat-{part}.txt" for part in ("train", "val", "test")}, list(images(copy)), copy)


ENTRY = Entry(
    name="eurosat",
    title="EuroSAT (2019)",
    kind="multiclass",
    summary="land use and land cover of 64 px Sentinel-2 chips, 13 bands",
    classes=tuple(COUNTS),
    bands=BANDS,
    sensor="sentinel-2",
    gsd_m=10.0,
    size_px=64,
    licence="MIT",
    citation="Helber et al., EuroSAT, IEEE JSTARS 12(7), 2019, doi:10.1109/JSTARS.2019.2918242",
    page="https://github.com/phelber/EuroSAT",
    archives=(
        Archive(
            "EuroSATallBands.zip",
            "https://hf.co/datasets/torchgeo/eurosat/resolve/main/EuroSATallBands.zip",
            "5ac12b3b2557aa56e1826e981e8e200e",
        ),
        Archive("eurosat-train.txt", SPLITS + "eurosat-train.txt", "908f142e73d6acdf3f482c5e80d851b1"),
        Archive("eurosat-val.txt", SPLITS + "eurosat-val.txt", "95de90f2aa998f70a3b2416bfe0687b4"),
        Archive("eurosat-test.txt", SPLITS + "eurosat-test.txt", "7ae5ab94471417b6e315763121e67c5f"),
    ),
    layout=f"""
eurosat/
  {NESTED}/   (or EuroSAT_MS/, as Zenodo has it)
    AnnualCrop/AnnualCrop_1.tif ... AnnualCrop_3000.tif
    Forest/ ... SeaLake/
  eurosat-train.txt  eurosat-val.txt  eurosat-test.txt   (names of images; optional)
""",
    marks=(NESTED, "EuroSAT_MS", "AnnualCrop"),
    reader=_items,
    counts={"": {"": 27000}},
    coordinates="the GeoTIFFs",
    torchgeo="EuroSAT",
    note="Splits: Neumann et al. (2019), 60/20/20, from the three lists; without them, a keyed draw.",
)
