"""NWPU-RESISC45: 45 scene classes of 700 images. Source: Cheng, Han & Lu, Proceedings of the IEEE 2017.

The paper trains on 10 and 20 per cent and publishes no list; the draw here is keyed.
"""

from __future__ import annotations

from terrasieve.data.catalog.entry import Archive, Entry
from terrasieve.data.catalog.folders import by_share, numbered

CLASSES = (
    "airplane", "airport", "baseball_diamond", "basketball_court", "beach", "bridge", "chaparral", "church",
    "circular_farmland", "cloud", "commercial_area", "dense_residential", "desert", "forest", "freeway",
    "golf_course", "ground_track_field", "harbor", "industrial_area", "intersection", "island", "lake", "meadow",
    "medium_residential", "mobile_home_park", "mountain", "overpass", "palace", "parking_lot", "railway",
    "railway_station", "rectangular_farmland", "river", "roundabout", "runway", "sea_ice", "ship", "snowberg",
    "sparse_residential", "stadium", "storage_tank", "tennis_court", "terrace", "thermal_power_station", "wetland",
)  # fmt: skip
HOST = "https://hf.co/datasets/torchgeo/resisc45/resolve/main/"
LISTS = {part: f"resisc45-{part}.txt" for part in ("train", "val", "test")}

ENTRY = Entry(
    name="resisc45",
    title="NWPU-RESISC45 (2017)",
    kind="multiclass",
    summary="45 scene classes in 256 px RGB of more than 100 countries, 0.2 to 30 m",
    classes=CLASSES,
    bands=("red", "green", "blue"),
    size_px=256,
    licence="not stated; for research",
    citation="Cheng, Han & Lu, Remote Sensing Image Scene Classification, Proc. IEEE 105(10), 2017, "
    "doi:10.1109/JPROC.2017.2675998",
    page="https://gcheng-nwpu.github.io/#Datasets",
    archives=(
        Archive("NWPU-RESISC45.zip", HOST + "NWPU-RESISC45.zip"),
        Archive(LISTS["train"], HOST + LISTS["train"], "b5a4c05a37de15e4ca886696a85c403e"),
        Archive(LISTS["val"], HOST + LISTS["val"], "a0770cee4c5ca20b8c32bbd61e114805"),
        Archive(LISTS["test"], HOST + LISTS["test"], "3dda9e4988b47eb1de9f07993653eb08"),
    ),
    layout="""
resisc45/
  NWPU-RESISC45/airplane/airplane_001.jpg ... airplane_700.jpg
  NWPU-RESISC45/airport/ ... wetland/
  resisc45-train.txt  resisc45-val.txt  resisc45-test.txt   (variant lists alone)
""",
    marks=("NWPU-RESISC45", "airplane/airplane_001.jpg"),
    reader=by_share("resisc45", numbered(dict.fromkeys(CLASSES, 700), "{c}_{i:03d}", ("NWPU-RESISC45", "")), LISTS),
    variants=("20", "10", "lists"),
    counts={"": {"": 31500}},
    torchgeo="RESISC45",
    note="Variants 20 and 10: that share of each class to train, drawn by key. Variant lists: Neumann et al. (2019).",
)
