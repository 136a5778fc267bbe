"""Woody: invasive shrubs and trees in drone images of Chile. Source: Kattenborn et al., RSE 2019.

Read as FoMo-Bench (Bountos et al., arXiv:2312.10114) cuts it into tiles: a folder per species, in it one per flight, in
it tiles and masks. Tested on one flight of each species, as there.
"""

from __future__ import annotations

from collections.abc import Iterator

from terrasieve.data.catalog.copy import Copy
from terrasieve.data.catalog.entry import Entry, Item
from terrasieve.data.masks import MaskSettings

CLASSES = ("background", "acacia", "pinus", "ulex")
SPECIES = CLASSES[1:]
TESTED = ("acacia_f1", "pinus_f2", "ulex_f4")


def _items(copy: Copy) -> Iterator[Item]:
    for species in (name for name in copy.folders() if any(each in name.lower() for each in SPECIES)):
        for flight in copy.folders(species):
            inside = copy.names(f"{species}/{flight}")
            sizes = sorted(name.removeprefix("tiles_") for name in inside if name.startswith("tiles_"))
            size = "224" if "224" in sizes or not sizes else sizes[0]
            tiles = f"{species}/{flight}/tiles_{size}"
            if not sizes:
                copy.problems.append(f"{tiles}: the folder of tiles is missing; cut them with FoMo-Bench's script")
            for path in copy.paired(tiles, tiles.replace("/tiles_", "/masks_")):
                split = "test" if flight.lower().startswith(TESTED) else "train"
                yield Item(path, split=split, mask=path.replace("/tiles_", "/masks_"))


ENTRY = Entry(
    name="woody",
    title="Woody (2019)",
    kind="segmentation",
    summary="3 woody species and background in 224 px RGB tiles of drone images of Chile",
    classes=CLASSES,
    size_px=224,
    licence="to be asked of its makers",
    citation="Kattenborn et al., UAV data as alternative to field sampling to map woody invasive species, RSE 227, "
    "2019, doi:10.1016/j.rse.2019.03.025; tiles: Bountos et al., FoMo-Bench, arXiv:2312.10114",
    page="https://github.com/RolnickLab/FoMo-Bench",
    layout="""
woody/
  acacia/acacia_f1/tiles_224/tile_0_0.tif ...   acacia/acacia_f1/masks_224/tile_0_0.tif ...
  pinus/ ...  ulex/ ...                          (masks: 0 background, 1 acacia, 2 pinus, 3 ulex)
""",
    marks=("acacia", "pinus", "ulex", "Acacia"),
    reader=_items,
    masks={"": MaskSettings(classes=CLASSES)},
    coordinates="the GeoTIFFs",
    note="Test: flights acacia_f1, pinus_f2, ulex_f4. Unsure: how the folders of the species are written (any name "
    "that holds the species' is read), and whether tiles have an alpha band.",
)
