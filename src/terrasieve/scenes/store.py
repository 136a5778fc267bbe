"""Store: the rows of a map that are finished, kept beside the file that they will become until all are there.

Between ``blend`` and ``cog``. A row counts once it is on the disk: the rows' bytes are flushed before the count is, so
a killed process leaves a count that is right, and the next one goes on from there if it was asked for the same map.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrasieve.files import written_aside


def folder_beside(path: Path) -> Path:
    """Return where the rows of a file that is being made are kept."""
    return path.with_name(f".{path.name}.rows")


class RowStore:
    """Rows of cells in one file, (rows, columns, K), written from the first to the last.

    Attributes:
        done: rows that are there.
        shape: (rows, columns, K) of the whole.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int], dtype: str, about: dict[str, Any]) -> None:
        """Open the rows of an interrupted map, or begin.

        Args:
            folder: held by this process (``files.held``).
            shape: of the whole.
            dtype: numpy name.
            about: what the map is made of and how; rows of another map are thrown away.
        """
        self.folder, self.shape, self.dtype = folder, shape, np.dtype(dtype)
        self.about = {"shape": list(shape), "dtype": dtype, **about}
        self.data, self._state = folder / "rows.bin", folder / "rows.json"
        self.done = self._before()
        with self.data.open("ab") as file:
            file.truncate(self.done * self._row_bytes)

    @property
    def _row_bytes(self) -> int:
        return self.shape[1] * self.shape[2] * self.dtype.itemsize

    def _before(self) -> int:
        try:
            state = json.loads(self._state.read_text(encoding="utf-8"))
            size = self.data.stat().st_size
        except (OSError, ValueError):
            return 0
        same = state.get("about") == json.loads(json.dumps(self.about))
        return int(state["done"]) if same and size >= state["done"] * self._row_bytes else 0

    def append(self, rows: NDArray[Any]) -> None:
        """Add finished rows, (n, columns, K)."""
        assert rows.shape[1:] == self.shape[1:] and self.done + len(rows) <= self.shape[0]
        with self.data.open("ab") as file:
            file.write(np.ascontiguousarray(rows, self.dtype).data)
            file.flush()
            os.fsync(file.fileno())
        self.done += len(rows)
        with written_aside(self._state) as aside:
            aside.write_text(json.dumps({"done": self.done, "about": self.about}), encoding="utf-8")

    def rows(self, first: int, last: int) -> NDArray[Any]:
        """Return rows, (n, columns, K), from the disk: nothing of the rest is read."""
        last = min(last, self.done)
        count = (last - first) * self.shape[1] * self.shape[2]
        flat = np.fromfile(self.data, self.dtype, count, offset=first * self._row_bytes)
        return flat.reshape(last - first, *self.shape[1:])

    def remove(self) -> None:
        """Remove the folder: the map is whole elsewhere."""
        shutil.rmtree(self.folder, ignore_errors=True)
