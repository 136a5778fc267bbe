"""Cashew plantations of Benin: Sentinel-2 time series of one scene with outlines. Source: TechnoServe, CGIAR, 2021.

The scene of 1,122 x 1,186 pixels at each date is cut into windows of 256, which overlap at its last edges
alone; a mask is drawn of the outlines when it is read. All dates of a window are in one split, drawn by key.
"""

from __future__ import annotations

from collections.abc import Iterator

from terrasieve.data.catalog.copy import Copy
from terrasieve.data.catalog.entry import Entry, Item
from terrasieve.data.catalog.times import time_in
from terrasieve.data.masks import MaskSettings
from terrasieve.keyed import numpy_generator

CLASSES = (
    "well-managed plantation", "poorly-managed plantation", "no plantation", "residential", "background", "uncertain",
)  # fmt: skip
BANDS = ("B02", "B03", "B04", "B08", "B01", "B05", "B06", "B07", "B8A", "B09", "B11", "B12")
WIDTH, HEIGHT, SIDE = 1122, 1186, 256
SHARES = {"train": 0.6, "val": 0.2}  # the rest is test


def windows() -> list[tuple[tuple[int, int, int, int], str]]:
    """Return the windows (x, y, width, height) of the scene, and the split of each."""
    starts = [[*range(0, length - SIDE, SIDE), length - SIDE] for length in (WIDTH, HEIGHT)]
    found = [(x, y, SIDE, SIDE) for y in starts[1] for x in starts[0]]
    order = numpy_generator(0, "catalog.cashew").permutation(len(found))
    bounds = [round(SHARES["train"] * len(found)), round((SHARES["train"] + SHARES["val"]) * len(found))]
    return [
        (window, "train" if place < bounds[0] else "val" if place < bounds[1] else "test")
        for window, place in zip(found, order, strict=True)
    ]


def _items(copy: Copy) -> Iterator[Item]:
    dates = copy.folders("imagery/00")
    if not dates:
        copy.problems.append("imagery/00: the folder of dates is missing or empty")
    for date in dates:
        files = f"imagery/00/{date}/{date}_{{}}_10m.tif"
        mask = f"labels/00.geojson#burn=class&like={files.replace('{}', BANDS[0])}"
        for window, split in windows():
            known = {"datetime": time_in(date.partition("_")[2])}
            yield Item(f"{files}#stack={','.join(BANDS)}", split=split, mask=mask, window=window, known=known)


ENTRY = Entry(
    name="cashew-plant",
    title="Smallholder Cashew Plantations in Benin (2021)",
    kind="segmentation",
    summary="how cashew plantations are managed, 256 px windows of Sentinel-2 at 70 dates, 12 bands",
    classes=CLASSES,
    sensor="sentinel-2",
    gsd_m=10.0,
    size_px=SIDE,
    licence="CC-BY-4.0",
    citation="Jin et al., Smallholder Cashew Plantations in Benin, TechnoServe and IFPRI, 2021, "
    "doi:10.34911/rdnt.hfv20i",
    page="https://beta.source.coop/technoserve/cashews-benin/",
    layout="""
cashew-plant/
  imagery/00/00_20191105/00_20191105_B01_10m.tif ... B12_10m.tif   (70 dates)
  labels/00.geojson                                                (outlines with the property class, 1 to 6)
""",
    marks=("imagery/00", "labels/00.geojson"),
    reader=_items,
    masks={"": MaskSettings(classes=CLASSES, values=(1, 2, 3, 4, 5, 6), ignore=(0,))},
    counts={"": {"": 70 * len(windows())}},
    coordinates="the GeoTIFFs",
    torchgeo="BeninSmallHolderCashews",
    note="No split is published: windows are drawn by key, 60/20/20. Windows of one scene are neighbours.",
)
