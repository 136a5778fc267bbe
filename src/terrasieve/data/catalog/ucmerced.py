"""UC Merced Land Use: 21 classes of 100 aerial images. Source: Yang & Newsam, ACM SIGSPATIAL GIS 2010.

The makers' files are TIFF; a copy as JPEG or PNG is read likewise. Some images have a few pixels less than 256.
"""

from __future__ import annotations

from terrasieve.data.catalog.entry import Archive, Entry
from terrasieve.data.catalog.folders import by_share, numbered

CLASSES = (
    "agricultural", "airplane", "baseballdiamond", "beach", "buildings", "chaparral", "denseresidential", "forest",
    "freeway", "golfcourse", "harbor", "intersection", "mediumresidential", "mobilehomepark", "overpass",
    "parkinglot", "river", "runway", "sparseresidential", "storagetanks", "tenniscourt",
)  # fmt: skip
HOST = "https://hf.co/datasets/torchgeo/ucmerced/resolve/main/"
LISTS = {part: f"uc_merced-{part}.txt" for part in ("train", "val", "test")}
_IMAGES = numbered(
    dict.fromkeys(CLASSES, 100), "{c}{i:02d}", ("UCMerced_LandUse/Images", "Images", ""), 0, (".tif", ".jpg", ".png")
)

ENTRY = Entry(
    name="ucmerced",
    title="UC Merced Land Use (2010)",
    kind="multiclass",
    summary="21 land uses in 256 px aerial RGB of the United States",
    classes=CLASSES,
    bands=("red", "green", "blue"),
    gsd_m=0.3,
    size_px=256,
    licence="public domain (USGS imagery)",
    citation="Yang & Newsam, Bag-of-visual-words and spatial extensions for land-use classification, GIS 2010, "
    "doi:10.1145/1869790.1869829",
    page="http://weegee.vision.ucmerced.edu/datasets/landuse.html",
    archives=(
        Archive("UCMerced_LandUse.zip", HOST + "UCMerced_LandUse.zip", "5b7ec56793786b6dc8a908e8854ac0e4"),
        Archive(LISTS["train"], HOST + LISTS["train"], "f2fb12eb2210cfb53f93f063a35ff374"),
        Archive(LISTS["val"], HOST + LISTS["val"], "11ecabfc52782e5ea6a9c7c0d263aca0"),
        Archive(LISTS["test"], HOST + LISTS["test"], "046aff88472d8fc07c4678d03749e28d"),
    ),
    layout="""
ucmerced/
  UCMerced_LandUse/Images/agricultural/agricultural00.tif ... agricultural99.tif   (or Images/)
  UCMerced_LandUse/Images/airplane/ ... tenniscourt/
  uc_merced-train.txt  uc_merced-val.txt  uc_merced-test.txt   (variant lists alone)
""",
    marks=("UCMerced_LandUse/Images", "Images/agricultural", "agricultural/agricultural00.tif"),
    reader=by_share("ucmerced", _IMAGES, LISTS),
    variants=("80", "50", "lists"),
    counts={"": {"": 2100}},
    torchgeo="UCMerced",
    note="Variants 80 and 50: that share of each class to train, drawn by key. Variant lists: Neumann et al. (2019).",
)
