"""Million-AID: a million scenes, of which 10,000 have a published class. Source: Long et al., IEEE JSTARS 2021.

The class of an image of the training part is the innermost of its folders (train/agriculture_land/grassland/meadow);
the images of the test part have no class and serve for pretraining.
"""

from __future__ import annotations

from collections.abc import Iterator

from terrasieve.data.catalog.copy import Copy
from terrasieve.data.catalog.entry import Archive, Entry, Item


def _items(copy: Copy) -> Iterator[Item]:
    waiting = ["train"]
    while waiting:
        folder = waiting.pop()
        for path in copy.images(folder):
            yield Item(path, label=folder.rpartition("/")[2])
        waiting += [f"{folder}/{name}" for name in reversed(copy.folders(folder))]
    for path in copy.images("test/test" if copy.has("test/test") else "test"):
        yield Item(path)


ENTRY = Entry(
    name="millionaid",
    title="Million-AID (2021)",
    kind="multiclass",
    summary="51 scene classes in RGB, 0.5 to 153 m; most images have no published class",
    bands=("red", "green", "blue"),
    licence="not stated; for research",
    citation="Long et al., On Creating Benchmark Dataset for Aerial Image Interpretation, IEEE JSTARS 14, 2021, "
    "doi:10.1109/JSTARS.2021.3070368",
    page="https://captain-whu.github.io/DiRS/",
    archives=(Archive("train.zip"), Archive("test.zip")),
    layout="""
millionaid/
  train/agriculture_land/grassland/meadow/P0115918.jpg ...   (10,000 images, 51 innermost folders)
  test/test/P0000001.jpg ...                                 (990,848 images without a class)
""",
    marks=("train/agriculture_land", "train/commercial_land", "test/test"),
    reader=_items,
    counts={"": {"": 1000848}},
    note="The classes are the innermost folders, not listed here. No split of the 10,000 is published.",
)
