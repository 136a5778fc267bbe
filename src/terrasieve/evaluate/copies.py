"""Copies: test images whose bytes train or val hold too, counted for every task by ``tasks``."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from terrasieve.evaluate.dividing import Row


def count_copies(rows: Sequence[Row]) -> int:
    """Count test rows whose bytes (and window) train or val hold too; only files of equal size are read."""
    by_size: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        path = Path(row.uri)
        if path.is_file():  # a URL would have to be fetched
            by_size[path.stat().st_size].append(row)
    leaked = 0
    for same in by_size.values():
        if len({row.split == "test" for row in same}) < 2:
            continue
        digests = {uri: hashlib.blake2b(Path(uri).read_bytes()).digest() for uri in {row.uri for row in same}}
        known = {(digests[row.uri], row.window) for row in same if row.split != "test"}
        leaked += sum((digests[row.uri], row.window) in known for row in same if row.split == "test")
    return leaked
