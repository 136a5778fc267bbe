"""Rows: the kept rows of one manifest or several, numbered through, for what compares images with each other.

Used by ``curate.overlap`` and ``curate.audit``. Columns are streamed by row groups; what is fetched of single rows is
what a pair needs, so that 13 million rows are never Python objects at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from terrasieve import manifest


class Rows:
    """Rows of manifests, numbered from the first manifest's first row on.

    Attributes:
        paths: of the manifests.
        counts: rows of each.
        kept: (n,) bool.
        sides: (n,) uint8, number of the manifest.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Open manifests.

        Raises:
            UserError: one of them is no manifest or has no kept row.
        """
        self.paths = list(paths)
        kept = [manifest.read(path, ["keep"])["keep"].to_numpy(zero_copy_only=False) for path in self.paths]
        self.counts = [len(each) for each in kept]
        self.kept = np.concatenate(kept)
        self.sides = np.repeat(np.arange(len(kept)), self.counts).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.kept)

    def blocks(self, columns: Sequence[str], size: int) -> Iterator[tuple[int, pa.Table]]:
        """Yield (number of the first row, table) over all rows, kept or not."""
        first = 0
        for path in self.paths:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(size, columns=list(columns)):
                    yield first, manifest.resolved(pa.Table.from_batches([batch]), path).select(list(columns))
                    first += len(batch)

    def take(self, numbers: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        """Fetch rows by number, in the order asked for; row groups without any of them are not read."""
        wanted, back = np.unique(numbers, return_inverse=True)
        found, first = [], 0
        for path in self.paths:
            with pq.ParquetFile(path) as file:
                for group in range(file.metadata.num_row_groups):
                    count = file.metadata.row_group(group).num_rows
                    here = wanted[slice(*np.searchsorted(wanted, [first, first + count]))] - first
                    if len(here):
                        group_table = file.read_row_group(group, columns=list(columns)).take(pa.array(here))
                        found.append(manifest.resolved(group_table, path).replace_schema_metadata())
                    first += count
        if not found:
            return manifest.SCHEMA.empty_table().select(list(columns))
        return pa.concat_tables(found).take(pa.array(back)).select(list(columns))
