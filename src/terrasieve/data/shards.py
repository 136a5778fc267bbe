"""Shards in training: an order of images that reads a few shards at a time, and whether a manifest asks for it.

Beside ``loader``, which takes its order from here. Over a network an image read alone costs a round trip; in shard
order every row of the batch reads on in a shard of its own, so that a shard is fetched once (``shard_cache``), used up
and let go. It is still one permutation of all images per epoch, a function of seed, epoch, batch size and lanes alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from terrasieve import keyed
from terrasieve.imagery import members
from terrasieve.remote import is_url


def archives(uris: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return the files that hold the images, in order of appearance, and (n,) int64, each image's number of its file.

    For members of tars that is the tar; windows of a scene share the scene.
    """
    numbers: dict[str, int] = {}
    of = np.fromiter((numbers.setdefault(_file(uri), len(numbers)) for uri in uris), np.int64, len(uris))
    return list(numbers), of


def _file(uri: str) -> str:
    member = members.parse(uri)
    return uri if member is None else member.archive


def is_remote(uri: str) -> bool:
    """Tell whether an image lies in a shard at a URL."""
    member = members.parse(uri)
    return member is not None and is_url(member.archive)


def uniform_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return an epoch's permutation of ``count`` images, (count,) int64."""
    return keyed.numpy_generator(seed, "order", epoch).permutation(count)


def shard_order(shards: np.ndarray, seed: int, epoch: int, batch_size: int, lanes: int) -> np.ndarray:
    """Return an epoch's permutation of images that keeps shards together.

    Shards are put in a drawn order, and each one's images too; that sequence is cut into ``lanes`` of equal length,
    which are read side by side: of every batch, rows [l w, (l + 1) w) with w = batch_size / lanes come from lane l. In
    later epochs lanes begin at another row, since epochs follow each other without a gap.

    Args:
        shards: (n,) number of each image's shard.
        seed: of the order.
        epoch: counted from 0.
        batch_size: of the global batch.
        lanes: shards read at a time; divides ``batch_size``.

    Returns:
        (n,) int64.
    """
    draw = keyed.numpy_generator(seed, "shards", epoch)
    place = draw.permutation(int(shards.max()) + 1)
    mixed = draw.permutation(len(shards))
    sequence = mixed[np.argsort(place[shards[mixed]], kind="stable")]
    starts = np.arange(lanes + 1) * len(shards) // lanes
    lane = np.repeat(np.arange(lanes), np.diff(starts))
    along, width = np.arange(len(shards)) - starts[lane], batch_size // lanes
    return sequence[np.lexsort((lane * width + along % width, along // width))]
