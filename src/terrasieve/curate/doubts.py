"""Doubts: what a scan's files say of their time and place but cannot mean, counted and listed, never silently dropped.

Used by ``scan``. What a header shows alone comes with the file; what footprints show, alone or beside each other
(no area, a GSD that contradicts them, swapped coordinates), ``data.places`` finds, which pretraining asks, too.
"""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

from terrasieve.data.places import find_places, warnings_of
from terrasieve.errors import UserError

_FEW = 5


class Doubts:
    """Counts of images by what is doubtful about them, and some of their names."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add(self, uri: str, words: tuple[str, ...]) -> None:
        """Count an image."""
        for doubt in words:
            self.counts[doubt] += 1
            named = self.examples.setdefault(doubt, [])
            if len(named) < _FEW:
                named.append(uri)

    def lines(self, table: pa.Table) -> list[str]:
        """Return a sentence for each doubt, those of places among them.

        Args:
            table: the manifest; images that have no place are not doubtful.
        """
        placed = pc.is_valid(table["lon"])
        usable = table.filter(pc.and_(pc.fill_null(table["keep"], False), placed))
        lines = warnings_of(self.counts, self.examples, int(pc.sum(table["keep"]).as_py() or 0))
        try:
            return lines + (find_places(usable).warnings() if len(usable) else [])
        except UserError as error:
            return [*lines, str(error)]
