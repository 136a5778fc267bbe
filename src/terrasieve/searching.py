"""Searching: what ``terrasieve search`` does, from vectors and one of them to a page of what is like it.

After ``embedding``, whose files it reads; before the command line.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from terrasieve.errors import UserError
from terrasieve.report.similar_page import Pool, write_similar
from terrasieve.scenes.similar import APART, alike
from terrasieve.scenes.vectors import MapVectors, open_vectors


class Searched(NamedTuple):
    """What was found.

    Attributes:
        searched: vectors with data.
        hits: (id, uri, score) of the nearest, best first.
        failed: images whose thumbnails could not be made: (uri, reason).
    """

    searched: int
    hits: list[tuple[str, str, float]]
    failed: list[tuple[str, str]]


def search(
    source: Path,
    like: str,
    out: Path,
    *,
    count: int = 50,
    pool: int = 2000,
    on_images: Callable[[int, int], None] | None = None,
) -> Searched:
    """Write a page of the images, or the cells of a scene, that are most like one of them.

    Args:
        source: table or COG of ``terrasieve embed``.
        like: an id of the table, a file's path or the end of it, or "longitude,latitude" in degrees.
        out: page to write, ``.html``.
        count: results.
        pool: places that the page holds, so that each can be asked in its turn; 80 x 80 pixels and the vector of each.
        on_images: called with thumbnails made and their total.

    Raises:
        UserError: for anything that a user can mend.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"-o {out}: give a name that ends in .html.")
    if count < 1 or pool <= count:
        raise UserError(f"-n {count}, --pool {pool}: show 1 or more, and let the page hold more than it shows.")
    vectors = open_vectors(source)
    found = alike(vectors, vectors.find(like), count, pool)
    places = vectors.places(found.rows.tolist())
    cells = isinstance(vectors, MapVectors)
    apart_px = APART * vectors.cell_px if isinstance(vectors, MapVectors) else 0
    shown = Pool(places.ids, places.uris, places.windows, places.lonlat_N2, found.unit_MD, cells)
    failed = write_similar(
        shown, out, made_of=vectors.made_of, searched=found.real, count=count, apart_px=apart_px, on_images=on_images
    )
    hits = vectors.places(found.nearest.tolist())
    return Searched(found.real, list(zip(hits.ids, hits.uris, found.scores.tolist(), strict=True)), failed)
