"""MLRSNet: 60 labels, 46 scene categories, 109,161 images. Source: Qi et al., ISPRS 2020.

A CSV per category names its images and has a column of 0 and 1 for each label.
"""

from __future__ import annotations

from collections.abc import Iterator

from terrasieve.data.catalog.copy import Copy
from terrasieve.data.catalog.entry import Archive, Entry, Item

CLASSES = (
    "airplane", "airport", "bare soil", "baseball diamond", "basketball court", "beach", "bridge", "buildings",
    "cars", "cloud", "containers", "crosswalk", "dense residential area", "desert", "dock", "factory", "field",
    "football field", "forest", "freeway", "golf course", "grass", "greenhouse", "gully", "habor", "intersection",
    "island", "lake", "mobile home", "mountain", "overpass", "park", "parking lot", "parkway", "pavement", "railway",
    "railway station", "river", "road", "roundabout", "runway", "sand", "sea", "ships", "snow", "snowberg",
    "sparse residential area", "stadium", "swimming pool", "tanks", "tennis court", "terrace", "track", "trail",
    "transmission tower", "trees", "water", "chaparral", "wetland", "wind turbine",
)  # fmt: skip


def _items(copy: Copy) -> Iterator[Item]:
    tables = sorted(name for name in copy.names("Labels") if name.endswith(".csv"))
    if len(tables) != 46:
        copy.problems.append(f"Labels: {len(tables)} of 46 tables, one per category, are here")
    for name in tables:
        category = name.removesuffix(".csv")
        for row in copy.table(f"Labels/{name}") or ():
            image = row.pop("image", None)
            if image is None:
                copy.problems.append(f"Labels/{name} has no column image")
                break
            labels = tuple(label for label, there in row.items() if there and there.strip() == "1")
            yield Item(f"Images/{category}/{image}", labels=labels)


ENTRY = Entry(
    name="mlrsnet",
    title="MLRSNet (2020)",
    kind="multilabel",
    summary="60 labels of 256 px RGB, 0.1 to 10 m",
    classes=CLASSES,
    bands=("red", "green", "blue"),
    size_px=256,
    licence="CC-BY-4.0",
    citation="Qi et al., MLRSNet: A multi-label high spatial resolution remote sensing dataset, ISPRS 169, 2020, "
    "doi:10.1016/j.isprsjprs.2020.09.020",
    page="https://data.mendeley.com/datasets/7j9bv9vwsx",
    archives=(Archive("MLRSNet.zip"),),
    layout="""
mlrsnet/
  Images/airplane/airplane_00001.jpg ...   (46 categories; unpack their archives)
  Labels/airplane.csv ...                  (image, and a column of 0 and 1 for each of 60 labels)
""",
    marks=("Labels/airplane.csv", "Images/airplane", "Labels"),
    reader=_items,
    counts={"": {"": 109161}},
    note="No split is published: a keyed draw, or --split. The harbour's label is spelt habor in the tables.",
)
