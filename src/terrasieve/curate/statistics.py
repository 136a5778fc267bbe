"""Statistics of a curation: what a manifest holds, what was dropped and why, by everything that is known of the rows.

Last step, before the datasheet and the report, which show nothing that is not in this dictionary. Streams batches of
rows, whose tallies are added up, so that 13 million rows need some hundreds of megabytes (coordinates and groups are
held). Source: CURATION.md, step 11.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from terrasieve import manifest as manifests
from terrasieve.curate.step import ROW_GROUP, Tick, codes
from terrasieve.errors import UserError
from terrasieve.files import written_aside

FILE = "statistics.json"
DISTINCT = 65_536  # values of a column that are counted apart; those that come later are counted together
CELLS = 90  # of the map, along its longer side; none is larger than COARSEST
COARSEST_DEG = 2.0
_READ = [
    *("keep", "reason", "source", "label", "labels", "width", "height", "bands", "dtype", "sensor", "gsd_m"),
    *("datetime", "lon", "lat", "licence", "split", "group", "window"),
]
_NUMERIC = ("gsd_m", "year", "month")  # in ascending order of value; all others by number of rows


class Tally:
    """Rows and kept rows of each value that was seen."""

    def __init__(self) -> None:
        self.counts: dict[Any, list[int]] = {}
        self.beyond = [0, 0]

    def add(self, values: pa.Array, keep: pa.Array) -> None:
        """Count a batch.

        Args:
            values: any type that Arrow groups by; null is a value.
            keep: booleans, as many.
        """
        table = pa.table({"value": values, "keep": keep.cast(pa.int64())})
        found = table.group_by("value").aggregate([("keep", "count"), ("keep", "sum")])
        for value, rows, kept in zip(*(found[name].to_pylist() for name in found.column_names), strict=True):
            into = self.counts.get(value)
            if into is None:
                into = self.counts.setdefault(value, [0, 0]) if len(self.counts) < DISTINCT else self.beyond
            into[0] += rows
            into[1] += kept

    def rows(
        self, name: Callable[[Any], Any] = lambda value: value, *, ascending: bool = False
    ) -> list[dict[str, Any]]:
        """Return {"value", "rows", "kept"} per value, the most frequent first, null last; "(more values)" after all."""
        order = (lambda item: item[0]) if ascending else (lambda item: (-item[1][0], str(item[0])))
        known = sorted(((value, n) for value, n in self.counts.items() if value is not None), key=order)
        if None in self.counts:
            known.append((None, self.counts[None]))
        listed = [
            {"value": None if value is None else name(value), "rows": rows, "kept": kept}
            for value, (rows, kept) in known
        ]
        if self.beyond[0]:
            listed.append({"value": "(more values)", "rows": self.beyond[0], "kept": self.beyond[1]})
        return listed


class _Sums:
    """All that is added up over the batches of a manifest."""

    def __init__(self) -> None:
        self.by = {
            name: Tally()
            for name in (
                *("source", "category", "size", "bands", "dtype", "sensor", "gsd_m", "year", "month"),
                *("licence", "split"),
            )
        }
        self.dropped: dict[tuple[str | None, str], int] = {}
        self.rows = self.kept = self.windows = self.pixels_kept = 0
        self.area_m2 = 0.0
        self.dates: list[str] = []
        self.places: list[np.ndarray] = []  # (n, 2) float32
        self.place_kept: list[np.ndarray] = []
        self.groups: list[np.ndarray] = []
        self.group_kept: list[np.ndarray] = []

    def add(self, batch: pa.RecordBatch) -> None:
        """Count a batch of ``_READ``."""
        keep = pc.fill_null(batch["keep"], False)
        kept = keep.to_numpy(zero_copy_only=False)
        self.rows += len(batch)
        self.kept += int(kept.sum())
        self.windows += len(batch) - batch["window"].null_count
        for name in ("source", "dtype", "sensor", "licence", "split"):
            self.by[name].add(batch[name], keep)
        self.by["bands"].add(pc.binary_join(batch["bands"], ","), keep)
        self._add_categories(batch, keep)
        self._add_sizes(batch, keep, kept)
        self._add_dates(batch, keep)
        self._add_places(batch, kept)
        self._add_dropped(batch, keep)

    def _add_categories(self, batch: pa.RecordBatch, keep: pa.Array) -> None:
        several = pc.fill_null(pc.greater(pc.list_value_length(batch["labels"]), 0), False)
        several = pc.and_(several, pc.is_null(batch["label"]))
        one = pc.invert(several)
        self.by["category"].add(batch["label"].filter(one), keep.filter(one))
        lists = batch["labels"].filter(several)
        self.by["category"].add(pc.list_flatten(lists), keep.filter(several).take(pc.list_parent_indices(lists)))

    def _add_sizes(self, batch: pa.RecordBatch, keep: pa.Array, kept: np.ndarray) -> None:
        width, height = (pc.fill_null(batch[name], 0).to_numpy().astype(np.int64) for name in ("width", "height"))
        known = (width > 0) & (height > 0)
        self.by["size"].add(pa.array(width << 32 | height, mask=~known), keep)
        self.pixels_kept += int((width * height)[kept].sum())
        gsd = pc.fill_null(batch["gsd_m"], np.nan).to_numpy()
        known = np.isfinite(gsd) & (gsd > 0)
        self.area_m2 += float((width * height * gsd**2)[kept & known].sum())
        with np.errstate(invalid="ignore", divide="ignore"):
            unit = 10.0 ** (np.floor(np.log10(gsd)) - 1)
        self.by["gsd_m"].add(pa.array(np.round(np.round(gsd / unit) * unit, 12), mask=~known), keep)

    def _add_dates(self, batch: pa.RecordBatch, keep: pa.Array) -> None:
        when = batch["datetime"]
        if when.null_count < len(when):
            ends = pc.min_max(when.filter(keep))
            self.dates += [str(end.as_py().date()) for end in (ends["min"], ends["max"]) if end.is_valid]
        for name in ("year", "month"):
            start = pc.floor_temporal(when, unit=name).cast(pa.timestamp("us"))
            self.by[name].add(start, keep)

    def _add_places(self, batch: pa.RecordBatch, kept: np.ndarray) -> None:
        lon, lat = (pc.fill_null(batch[name], np.nan).to_numpy() for name in ("lon", "lat"))
        known = np.isfinite(lon) & np.isfinite(lat)
        self.places.append(np.stack([lon[known], lat[known]], axis=1).astype(np.float32))
        self.place_kept.append(kept[known])
        member = batch["group"].is_valid().to_numpy(zero_copy_only=False)
        self.groups.append(batch["group"].drop_null().to_numpy())
        self.group_kept.append(kept[member])

    def _add_dropped(self, batch: pa.RecordBatch, keep: pa.Array) -> None:
        gone = pa.table({"source": batch["source"], "reason": batch["reason"]}).filter(pc.invert(keep))
        table = pa.table({"source": gone["source"], "code": codes(pc.fill_null(gone["reason"], ""))})
        found = table.group_by(["source", "code"]).aggregate([([], "count_all")]).to_pylist()
        for entry in found:
            place = (entry["source"], entry["code"])
            self.dropped[place] = self.dropped.get(place, 0) + entry["count_all"]


def statistics(manifest: Path, pairs: Path | None = None, tick: Tick | None = None) -> dict[str, Any]:
    """Count a manifest's rows by all that is known of them.

    Args:
        manifest: a manifest file of any number of rows.
        pairs: table of judged pairs (``curate.pairs``), where there is one.
        tick: told the rows done and their number.

    Returns:
        JSON values only: hashes of both files, ``rows``, ``kept``, ``by`` (per column a list of {"value", "rows",
        "kept"}), ``dropped`` ({"source", "code", "rows"}), ``map`` (cells of ``cell_deg`` degrees: west and south edge,
        rows, kept), ``groups``, ``pairs`` and totals; units in the keys.

    Raises:
        UserError: no manifest, or no table of pairs.
    """
    manifests.read(manifest, ["keep"], empty_ok=True)  # a file that is no manifest is named as such
    sums = _Sums()
    with pq.ParquetFile(manifest) as file:
        for batch in file.iter_batches(ROW_GROUP, columns=_READ):
            sums.add(batch)
            if tick:
                tick(sums.rows, file.metadata.num_rows)
    by = {name: sums.by[name].rows(_NAMES.get(name, str), ascending=name in _NUMERIC) for name in sums.by}
    dropped = sorted(sums.dropped.items(), key=lambda item: (-item[1], str(item[0])))
    return {
        "manifest_blake2b": digest(manifest),
        "pairs_blake2b": digest(pairs),
        "rows": sums.rows,
        "kept": sums.kept,
        "windows": sums.windows,
        "pixels_kept": sums.pixels_kept,
        "area_kept_km2": round(sums.area_m2 / 1e6, 3),
        "first_date": min(sums.dates, default=None),
        "last_date": max(sums.dates, default=None),
        "by": by,
        "dropped": [{"source": source, "code": code, "rows": rows} for (source, code), rows in dropped],
        "map": _map(np.concatenate([*sums.places, np.empty((0, 2), np.float32)]), sums.place_kept, sums.rows),
        "groups": _groups(sums.groups, sums.group_kept),
        "pairs": _pairs(pairs),
    }


_NAMES: dict[str, Callable[[Any], Any]] = {
    "size": lambda value: f"{value >> 32} x {value & 0xFFFFFFFF}",
    "gsd_m": float,
    "year": lambda value: f"{value:%Y}",
    "month": lambda value: f"{value:%Y-%m}",
}


def digest(path: Path | None) -> str | None:
    """Return 32 hex digits of a hash of a file's bytes, by which its statistics are known; None without a file."""
    if path is None or not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def write(content: dict[str, Any], path: Path) -> None:
    """Write statistics as JSON, whole or not at all."""
    with written_aside(path) as aside:
        aside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _map(places: np.ndarray, kept: Iterable[np.ndarray], rows: int) -> dict[str, Any]:
    """Count rows per cell of a grid that is as fine as the places are close together."""
    if not len(places):
        return {"cell_deg": COARSEST_DEG, "cells": [], "without": rows}
    lon = (places[:, 0] + 180) % 360 - 180
    lat = np.clip(places[:, 1], -90, 90)
    cell = max(float(np.ptp(lon)), float(np.ptp(lat))) / CELLS
    steps = [COARSEST_DEG / 10**power / part for power in range(6) for part in (1, 2, 4)]
    cell = next((step for step in reversed(steps) if step >= cell), COARSEST_DEG)
    columns, lines = round(360 / cell), round(180 / cell)
    # float32 keeps a coordinate within a metre or so; a place on an edge may count in the cell beside it
    column = np.minimum(((lon + 180) / cell).astype(np.int64), columns - 1)
    line = np.minimum(((lat + 90) / cell).astype(np.int64), lines - 1)
    number, inverse, count = np.unique(line * columns + column, return_inverse=True, return_counts=True)
    keeps = np.bincount(inverse, np.concatenate(list(kept))).astype(np.int64)
    west, south = number % columns * cell - 180, number // columns * cell - 90
    cells = zip(west.round(6).tolist(), south.round(6).tolist(), count.tolist(), keeps.tolist(), strict=True)
    return {"cell_deg": cell, "cells": [list(entry) for entry in cells], "without": rows - len(places)}


def _groups(groups: list[np.ndarray], kept: list[np.ndarray]) -> dict[str, Any]:
    """Count the groups of two and more rows by their size, and the rows in them."""
    together = np.concatenate([*groups, np.empty(0, np.int64)])
    _, inverse, sizes = np.unique(together, return_inverse=True, return_counts=True)
    keeps = np.bincount(inverse, np.concatenate([*kept, np.empty(0, bool)]), len(sizes)).astype(np.int64)
    several = sizes > 1
    size, number = np.unique(sizes[several], return_counts=True)
    return {
        "groups": int(several.sum()),
        "rows": int(sizes[several].sum()),
        "kept": int(keeps[several].sum()),
        "largest": int(sizes.max(initial=0)),
        "sizes": [[int(s), int(n)] for s, n in zip(size, number, strict=True)],
    }


def _pairs(path: Path | None) -> list[dict[str, Any]]:
    """Count judged pairs by kind, verdict and who judged."""
    if path is None or not path.is_file():
        return []
    counts: dict[tuple[Any, ...], int] = {}
    names = ["kind", "verdict", "by"]
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(ROW_GROUP, columns=names):
                for entry in pa.Table.from_batches([batch]).group_by(names).aggregate([([], "count_all")]).to_pylist():
                    place = tuple(entry[name] for name in names)
                    counts[place] = counts.get(place, 0) + entry["count_all"]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UserError(
            f"{path} is no table of pairs ({error}). Run the verification again: terrasieve curate."
        ) from error
    order = sorted(counts.items(), key=lambda item: tuple(map(str, item[0])))
    return [dict(zip(names, place, strict=True)) | {"pairs": count} for place, count in order]
