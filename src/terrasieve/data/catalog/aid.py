"""AID: 30 scene classes, 10,000 images. Source: Xia et al., IEEE TGRS 2017.

The paper trains on 20 and 50 per cent and publishes no list; the draw here is keyed.
"""

from __future__ import annotations

from terrasieve.data.catalog.entry import Archive, Entry
from terrasieve.data.catalog.folders import by_share, listed

COUNTS = {
    "Airport": 360, "BareLand": 310, "BaseballField": 220, "Beach": 400, "Bridge": 360, "Center": 260, "Church": 240,
    "Commercial": 350, "DenseResidential": 410, "Desert": 300, "Farmland": 370, "Forest": 250, "Industrial": 390,
    "Meadow": 280, "MediumResidential": 290, "Mountain": 340, "Park": 350, "Parking": 390, "Playground": 370,
    "Pond": 420, "Port": 380, "RailwayStation": 260, "Resort": 290, "River": 410, "School": 300,
    "SparseResidential": 300, "Square": 330, "Stadium": 290, "StorageTanks": 360, "Viaduct": 420,
}  # fmt: skip

ENTRY = Entry(
    name="aid",
    title="AID (2017)",
    kind="multiclass",
    summary="30 scene classes in 600 px RGB, 0.5 to 8 m",
    classes=tuple(COUNTS),
    bands=("red", "green", "blue"),
    size_px=600,
    licence="not stated; for research",
    citation="Xia et al., AID: A Benchmark Data Set for Performance Evaluation of Aerial Scene Classification, "
    "IEEE TGRS 55(7), 2017, doi:10.1109/TGRS.2017.2685945",
    page="https://captain-whu.github.io/AID/",
    archives=(Archive("AID.zip"),),
    layout="""
aid/
  AID/Airport/airport_1.jpg ...   (360 images)
  AID/BareLand/ ... Viaduct/
""",
    marks=("AID/Airport", "AID_dataset/AID", "Airport/airport_1.jpg"),
    reader=by_share("aid", listed(COUNTS, ("AID", "AID_dataset/AID", ""))),
    variants=("50", "20"),
    counts={"": {"": 10000}},
    note="Variants 50 and 20: that share of each class to train, drawn by key.",
)
