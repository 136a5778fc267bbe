"""DIOR and DIOR-R: twenty kinds of objects in aerial images, with horizontal and with oriented boxes.

Source: Li et al., ISPRS 2020 (DIOR); Cheng et al., TGRS 2022 (DIOR-R: the same images). Annotations are Pascal VOC's
XML: ``bndbox``, whose corners are pixels counted from 1, or ``robndbox`` of four corners (x_left_top, y_left_top, ...),
taken as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from xml.etree import ElementTree

from terrasieve.data.catalog.boxes import Box, oriented
from terrasieve.data.catalog.copy import Copy
from terrasieve.data.catalog.entry import Entry, Item

CLASSES = (
    "airplane", "airport", "baseballfield", "basketballcourt", "bridge", "chimney", "dam",
    "expressway-service-area", "expressway-toll-station", "golffield", "groundtrackfield", "harbor", "overpass",
    "ship", "stadium", "storagetank", "tenniscourt", "trainstation", "vehicle", "windmill",
)  # fmt: skip
CORNERS = ("left_top", "right_top", "right_bottom", "left_bottom")
COUNTS = {"train": 5862, "val": 5863, "test": 11738}
_BY_LETTERS = {name.replace("-", ""): name for name in CLASSES}


def _items(copy: Copy, turned: bool) -> Iterator[Item]:
    kind = "Oriented" if turned else "Horizontal"
    folders = tuple(f"Annotations/{kind}{gap}Bounding{gap}Boxes" for gap in (" ", "_"))
    folder = copy.first(*folders, "Annotations")
    if folder is None:
        copy.problems.append(f"there is no folder {folders[0]}")
    for split in COUNTS:
        bare: list[str] = []
        for name in copy.lines(f"ImageSets/Main/{split}.txt", f"Main/{split}.txt") or ():
            path = f"{folder}/{name}.xml"
            found = folder is not None and copy.has(path)
            if folder is not None and not found:
                bare.append(path)
            image = f"JPEGImages-{'test' if split == 'test' else 'trainval'}/{name}.jpg"
            yield Item(image, split=split, boxes=tuple(_boxes(copy, path, turned)) if found else None)
        if bare:
            copy.problems.append(f"{split}: boxes of {len(bare):,} images missing, first: {bare[0]}")


def _boxes(copy: Copy, path: str, turned: bool) -> Iterator[Box]:
    try:
        root = ElementTree.parse(copy.root / path).getroot()
        for found in root.iter("object"):
            name = _class(found.findtext("name", ""))
            hard = found.findtext("difficult", "0").strip() == "1"
            frame = found.find("robndbox" if turned else "bndbox")
            if frame is None:
                raise ValueError(f"an object without {'robndbox' if turned else 'bndbox'}")
            if turned:
                yield oriented(name, [(_number(frame, f"x_{c}"), _number(frame, f"y_{c}")) for c in CORNERS], hard)
            else:
                left, top, right, bottom = (_number(frame, edge) for edge in ("xmin", "ymin", "xmax", "ymax"))
                yield Box(name, (left - 1, top - 1, right, bottom), None, hard)
    except (ElementTree.ParseError, ValueError, OSError) as error:
        copy.problems.append(f"{path} cannot be read: {error}")


def _class(text: str) -> str:
    """Return the class of a name, however it is written: Expressway-Service-area, golf field."""
    name = "".join(letter for letter in text.lower() if letter.isalpha())
    if name not in _BY_LETTERS:
        raise ValueError(f"unknown class {text!r}")
    return _BY_LETTERS[name]


def _number(frame: ElementTree.Element, name: str) -> float:
    text = frame.findtext(name)
    if text is None:
        raise ValueError(f"a box without {name}")
    return float(text)


def _layout(name: str, folder: str) -> str:
    return f"""
{name}/
  JPEGImages-trainval/00001.jpg ... 11725.jpg
  JPEGImages-test/11726.jpg ... 23463.jpg
  Annotations/{folder}/00001.xml ... 23463.xml
  ImageSets/Main/train.txt  val.txt  test.txt   (or Main/)
"""


ENTRY = Entry(
    name="dior",
    title="DIOR (2020)",
    kind="detection",
    summary="20 kinds of objects in 800 px aerial RGB, horizontal boxes",
    classes=CLASSES,
    bands=("red", "green", "blue"),
    size_px=800,
    licence="not stated; for research",
    citation="Li et al., Object Detection in Optical Remote Sensing Images, ISPRS 159, 2020, "
    "doi:10.1016/j.isprsjprs.2019.11.023",
    page="https://gcheng-nwpu.github.io/#Datasets",
    layout=_layout("dior", "Horizontal Bounding Boxes"),
    marks=("JPEGImages-trainval", "JPEGImages-test"),
    reader=lambda copy: _items(copy, turned=False),
    counts={"": COUNTS},
    note="The layout is the makers', not that of TorchGeo's copy, which has no boxes of the test images. Papers train "
    "on train and val together.",
)
ORIENTED = replace(
    ENTRY,
    name="dior-r",
    title="DIOR-R (2022)",
    kind="oriented detection",
    summary="20 kinds of objects in 800 px aerial RGB, oriented boxes",
    citation="Cheng et al., Anchor-Free Oriented Proposal Generator for Object Detection, IEEE TGRS 60, 2022, "
    "doi:10.1109/TGRS.2022.3183022",
    layout=_layout("dior-r", "Oriented Bounding Boxes"),
    reader=lambda copy: _items(copy, turned=True),
    note="The images are DIOR's. Papers train on train and val together.",
)
