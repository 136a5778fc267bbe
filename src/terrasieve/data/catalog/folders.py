"""Folders: readers for the commonest layout, a folder per class, and the papers' training ratios.

Used by the entries of scene classification. Where a paper gives a share of training images and no list of them, the
list is drawn by key: the same on every machine, and a smaller share lies within a larger one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from terrasieve.data.catalog.copy import Copy
from terrasieve.data.catalog.entry import Item, Reader
from terrasieve.keyed import numpy_generator


def numbered(
    counts: Mapping[str, int], name: str, tops: Sequence[str], start: int = 1
) -> Callable[[Copy], Iterator[Item]]:
    """Return a reader of class folders whose files are numbered.

    Args:
        counts: published number of images by class.
        name: of a file, with {c} for the class and {i} for the number.
        tops: where the class folders may lie, the first that there is counts; "" = at the top.
        start: the first number.
    """

    def reader(copy: Copy) -> Iterator[Item]:
        top = next((top for top in tops if any(copy.has(_join(top, each)) for each in counts)), tops[0])
        for each, count in counts.items():
            for number in range(start, start + count):
                yield Item(_join(top, each, name.format(c=each, i=number)), label=each)

    return reader


def listed(classes: Sequence[str], tops: Sequence[str], endings: tuple[str, ...]) -> Callable[[Copy], Iterator[Item]]:
    """Return a reader of class folders whose files have names of their own: what is there is what there is.

    Args:
        classes: folders that a copy ought to have.
        tops: as of :func:`numbered`.
        endings: of the images' names.
    """

    def reader(copy: Copy) -> Iterator[Item]:
        top = next((top for top in tops if any(copy.has(_join(top, each)) for each in classes)), tops[0])
        for each in classes:
            paths = copy.images(_join(top, each), endings)
            if not paths:
                copy.problems.append(f"{_join(top, each)}: the class folder is missing or empty")
            for path in paths:
                yield Item(path, label=each)

    return reader


def by_share(name: str, items: Callable[[Copy], Iterator[Item]]) -> Reader:
    """Return a reader that gives the variant's share of each class to train, in per cent, and the rest to test.

    Args:
        name: of the data set, which keys the draw.
        items: a reader that tells an image's class.
    """

    def reader(copy: Copy) -> Iterator[Item]:
        found = list(items(copy))
        yield from shared(name, found, float(copy.variant) / 100)

    return reader


def shared(name: str, items: Sequence[Item], share: float) -> Iterator[Item]:
    """Yield images with the split train or test, drawn by key within each class; order as given.

    The draw depends on the data set's name, the class and the images' names in their order, on nothing else.
    """
    from dataclasses import replace

    by_class: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        by_class.setdefault(item.label or "", []).append(place)
    train: set[int] = set()
    for number, label in enumerate(sorted(by_class)):
        places = sorted(by_class[label], key=lambda place: items[place].uri)
        order = numpy_generator(0, f"catalog.{name}.{label}", number).permutation(len(places))
        train.update(places[at] for at in order[: round(share * len(places))])
    for place, item in enumerate(items):
        yield replace(item, split="train" if place in train else "test")


def _join(*parts: str) -> str:
    return "/".join(part for part in parts if part)
