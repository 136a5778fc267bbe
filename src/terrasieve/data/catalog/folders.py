"""Folders: readers for the commonest layout, a folder per class, and the papers' training ratios.

Used by the entries of scene classification. Where a paper gives a share of training images and no list of them, the
list is drawn by key: the same on every machine, and a smaller share lies within a larger one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from terrasieve.data.catalog.copy import Copy
from terrasieve.data.catalog.entry import Item, Reader
from terrasieve.keyed import numpy_generator


def numbered(
    counts: Mapping[str, int],
    name: str,
    tops: Sequence[str],
    start: int = 1,
    endings: Sequence[str] = (".jpg",),
) -> Callable[[Copy], Iterator[Item]]:
    """Return a reader of class folders whose files are numbered.

    Args:
        counts: published number of images by class.
        name: of a file, without its ending, with {c} for the class and {i} for the number.
        tops: where the class folders may lie, the first that there is counts; "" = at the top.
        start: the first number.
        endings: likewise; the first of which there is a file.
    """

    def reader(copy: Copy) -> Iterator[Item]:
        top = _top(copy, counts, tops)
        firsts = [_join(top, each, name.format(c=each, i=start)) for each in counts]
        ending = next((end for end in endings if any(copy.has(first + end) for first in firsts)), endings[0])
        for each, count in counts.items():
            for number in range(start, start + count):
                yield Item(_join(top, each, name.format(c=each, i=number) + ending), label=each)

    return reader


def listed(counts: Mapping[str, int], tops: Sequence[str]) -> Callable[[Copy], Iterator[Item]]:
    """Return a reader of class folders whose files have names of their own: what is there is listed, and counted.

    Args:
        counts: published number of images by class.
        tops: as of :func:`numbered`.
    """

    def reader(copy: Copy) -> Iterator[Item]:
        top = _top(copy, counts, tops)
        for each, count in counts.items():
            paths = copy.images(_join(top, each))
            if len(paths) != count:
                copy.problems.append(f"{_join(top, each)}: {len(paths):,} of {count:,} images are here")
            for path in paths:
                yield Item(path, label=each)

    return reader


def _top(copy: Copy, classes: Mapping[str, int], tops: Sequence[str]) -> str:
    return next((top for top in tops if any(copy.has(_join(top, each)) for each in classes)), tops[0])


def split_by(lists: Mapping[str, str], items: Sequence[Item], copy: Copy) -> Iterator[Item]:
    """Yield images with the splits of published lists of names, whatever their endings; without lists, with none.

    Args:
        lists: file by split.
        items: all images of the data set.
        copy: where the lists lie; an image that none of them names is left out.
    """
    if copy.first(*lists.values()) is None:
        yield from items
        return
    split = {Path(line).stem: part for part, name in lists.items() for line in copy.lines(name) or ()}
    for item in items:
        name = Path(item.uri).stem
        if name in split:
            yield replace(item, split=split[name])


def by_share(name: str, items: Callable[[Copy], Iterator[Item]], lists: Mapping[str, str] | None = None) -> Reader:
    """Return a reader that gives the variant's share of each class to train, in per cent, and the rest to test.

    Args:
        name: of the data set, which keys the draw.
        items: a reader that tells an image's class.
        lists: of the variant "lists", file by split.
    """

    def reader(copy: Copy) -> Iterator[Item]:
        found = list(items(copy))
        if copy.variant == "lists":
            if copy.first(*(lists or {}).values()) is None:
                copy.problems.append(f"there are no lists {', '.join((lists or {}).values())}")
            yield from split_by(lists or {}, found, copy)
        else:
            yield from shared(name, found, float(copy.variant) / 100)

    return reader


def shared(name: str, items: Sequence[Item], share: float) -> Iterator[Item]:
    """Yield images with the split train or test, drawn by key within each class; order as given.

    The draw depends on the data set's name, the class and the images' names in their order, on nothing else.
    """
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
