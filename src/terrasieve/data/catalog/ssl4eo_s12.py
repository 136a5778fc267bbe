"""SSL4EO-S12: four seasons of 251,079 places, for pretraining. Source: Wang et al., IEEE GRSM 2023.

A folder per place, in it one per season, in it one file per band. Bands of 20 and 60 m are brought to 264 px by the
nearest pixel.
"""

from __future__ import annotations

from collections.abc import Iterator

from terrasieve.data.catalog.copy import Copy
from terrasieve.data.catalog.entry import Archive, Entry, Item
from terrasieve.data.catalog.times import time_in

L2A = ("B2", "B3", "B4", "B8", "B1", "B5", "B6", "B7", "B8A", "B9", "B11", "B12")  # one of 10 m first
BANDS = {"s2c": (*L2A[:10], "B10", *L2A[10:]), "s2a": L2A, "s1": ("VV", "VH")}
FOLDERS = {"s2c": ("s2c", "s2_l1c"), "s2a": ("s2a", "s2_l2a"), "s1": ("s1", "s1_grd")}
SEASONS = 4


def _items(copy: Copy) -> Iterator[Item]:
    top = copy.first(*FOLDERS[copy.variant])
    if top is None:
        copy.problems.append(f"there is no folder {' or '.join(FOLDERS[copy.variant])}")
        return
    few = 0
    for place in sorted(copy.names(top)):
        dates = sorted(copy.names(f"{top}/{place}"))
        few += len(dates) < SEASONS
        for date in dates:
            uri = f"{top}/{place}/{date}/{{}}.tif#stack={','.join(BANDS[copy.variant])}"
            yield Item(uri, known={"datetime": time_in(date), "sensor": f"sentinel-{copy.variant[1]}"})
    if few:
        copy.problems.append(f"{top}: {few:,} places with fewer than {SEASONS} seasons")


ENTRY = Entry(
    name="ssl4eo-s12",
    title="SSL4EO-S12 (2023)",
    kind="pretraining",
    summary="264 px Sentinel-2 of 251,079 places in four seasons; variants s2c (13 bands), s2a (12), s1 (VV, VH)",
    gsd_m=10.0,
    size_px=264,
    licence="CC-BY-4.0",
    citation="Wang et al., SSL4EO-S12, IEEE GRSM 11(3), 2023, doi:10.1109/MGRS.2023.3281651",
    page="https://github.com/zhu-xlab/SSL4EO-S12",
    archives=(Archive("s2_l1c.tar.gz"), Archive("s2_l2a.tar.gz"), Archive("s1.tar.gz")),
    layout="""
ssl4eo-s12/
  s2c/0000000/20200323T141741_20200323T142421_T20MQV/B1.tif ... B12.tif   (4 dates of each of 251,079 places)
  s2a/ ...  s1/0000000/S1A_IW_GRDH_.../VH.tif  VV.tif                     (the other variants)
""",
    marks=("s2c", "s2a", "s2_l1c", "s2_l2a", "s1/0000000"),
    reader=_items,
    variants=("s2c", "s2a", "s1"),
    counts={"": {"": 1004316}},
    coordinates="the GeoTIFFs",
    torchgeo="SSL4EOS12",
    note="Version 1.0, as GeoTIFFs. Version 1.1 comes as Zarr and is not read.",
)
