"""LoveDA: land cover of Chinese cities and villages. Source: Wang et al., NeurIPS Datasets and Benchmarks 2021.

The masks of the test part are not published: its images are listed without a split, and the validation part is what is
tested on, as most papers do.
"""

from __future__ import annotations

from collections.abc import Iterator

from terrasieve.data.catalog.copy import Copy
from terrasieve.data.catalog.entry import Archive, Entry, Item
from terrasieve.data.masks import MaskSettings

CLASSES = ("background", "building", "road", "water", "barren", "forest", "agriculture")
PARTS = {"Train": "train", "Val": "test", "Test": None}
ZENODO = "https://zenodo.org/records/5706578/files/"


def _items(copy: Copy) -> Iterator[Item]:
    for part, split in PARTS.items():
        for scene in ("Rural", "Urban"):
            folder = f"{part}/{scene}/images_png"
            paths = copy.paired(folder, f"{part}/{scene}/masks_png")
            if not paths:
                copy.problems.append(f"{folder}: the folder is missing or empty")
            for path in paths:
                yield Item(path, split=split, mask=path.replace("images_png", "masks_png") if split else None)


ENTRY = Entry(
    name="loveda",
    title="LoveDA (2021)",
    kind="segmentation",
    summary="7 land covers in 1024 px aerial RGB of three Chinese cities, urban and rural",
    classes=CLASSES,
    bands=("red", "green", "blue"),
    gsd_m=0.3,
    size_px=1024,
    licence="CC-BY-NC-SA-4.0",
    citation="Wang et al., LoveDA: A Remote Sensing Land-Cover Dataset for Domain Adaptive Semantic Segmentation, "
    "NeurIPS Datasets and Benchmarks 2021, arXiv:2110.08733",
    page="https://github.com/Junjue-Wang/LoveDA",
    archives=(
        Archive("Train.zip", ZENODO + "Train.zip", "de2b196043ed9b4af1690b3f9a7d558f"),
        Archive("Val.zip", ZENODO + "Val.zip", "84cae2577468ff0b5386758bb386d31d"),
        Archive("Test.zip", ZENODO + "Test.zip", "a489be0090465e01fb067795d24e6b47"),
    ),
    layout="""
loveda/
  Train/Rural/images_png/0.png ...  Train/Rural/masks_png/0.png ...   (and Train/Urban)
  Val/Rural/ ...  Val/Urban/ ...
  Test/Rural/images_png/ ...  Test/Urban/images_png/ ...              (no masks)
""",
    marks=("Train/Rural", "Val/Rural", "Test/Rural"),
    reader=_items,
    counts={"": {"train": 2522, "test": 1669, "": 5987}},
    masks={"": MaskSettings(classes=CLASSES, values=(1, 2, 3, 4, 5, 6, 7), ignore=(0,))},
    torchgeo="LoveDA",
    note="Tested on the validation part: the masks of the test part are scored by its makers' server alone.",
)
