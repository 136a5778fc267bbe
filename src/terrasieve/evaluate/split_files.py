"""Split files: a manifest divided by geography, as a CSV or as a manifest of its own, with what was left out and why.

Around ``splits``: ``terrasieve split`` writes files, ``tasks`` and ``parts`` divide a manifest on the fly.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_array

from terrasieve import manifest as manifests
from terrasieve.curate import step
from terrasieve.data.places import Places, find_places
from terrasieve.errors import UserError
from terrasieve.evaluate.splits import OUT, PARTS, TEST, Division, SplitSettings, divide
from terrasieve.files import written_aside
from terrasieve.remote import is_url

COLUMNS = (
    *("id", "uri", "window", "geometry", "lon", "lat", "crs", "gsd_m", "width", "height", "datetime"),
    *("label", "labels", "split", "keep"),
)


@dataclass(frozen=True)
class Written:
    """A split that was made.

    Attributes:
        division: of the kept rows.
        settings: how.
        classes: names.
        balance: (C, 3) int64, images of each class in train, val, test.
        files: that were written.
        shares_ground: images of train or val left out because they show the same ground.
    """

    division: Division
    settings: SplitSettings
    classes: tuple[str, ...]
    balance: np.ndarray
    files: tuple[Path, ...] = ()

    def lines(self) -> list[str]:
        """Say what was done, for people."""
        found, settings = self.division, self.settings
        counts = [int((found.part == number).sum()) for number in range(3)]
        total = max(sum(counts), 1)
        listed = ", ".join(
            f"{n:,} {name} ({100 * n / total:.1f} %)" for name, n in zip(PARTS, counts, strict=True) if n
        )
        groups = {number: len(np.unique(found.group[found.part == number])) for number in range(3)}
        held = ", ".join(f"{groups[number]} {PARTS[number]}" for number in range(3) if counts[number])
        how = {
            "random": "random images",
            "blocks": f"blocks of {found.block_deg or 0:g} degrees: {held}",
            "regions": f"regions: {held}",
        }[settings.by]
        lines = [f"{listed}; {how}; seed {settings.seed}"]
        if settings.placed:
            lines.append(self._buffer_line())
        if found.unplaced:
            lines.append(f"{found.unplaced:,} images without coordinates are left out")
        missing = [self.classes[row] for row in np.flatnonzero(self.balance[:, 0] == 0)]
        untested = [self.classes[row] for row in np.flatnonzero(self.balance[:, TEST] == 0)]
        for names, what in ((missing, "train"), (untested, "test")):
            if names:
                shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
                lines.append(f"{len(names)} of {len(self.classes)} classes have no image in {what}: {shown}")
        return lines

    def _buffer_line(self) -> str:
        near, buffer_km = self.division.near, self.settings.buffer_km or 0.0
        if not len(near.rows):
            what = f"nearer than {buffer_km:g} km to held-out ones" if buffer_km else "that show held-out ground"
            return f"no training images {what}"
        ground = int((near.km == 0).sum())
        words = f"{len(near.rows):,} image(s) of train and val are left out: "
        if not buffer_km:
            return words + "they show held-out ground"
        return f"{words}nearer than {buffer_km:g} km to held-out ones, {ground:,} of them touch or overlap one"


def split_rows(kept: pa.Table, settings: SplitSettings) -> Written:
    """Divide a manifest's kept rows.

    Args:
        kept: columns ``COLUMNS``.
        settings: how.

    Raises:
        UserError: as :func:`terrasieve.evaluate.splits.divide`.
    """
    ids = np.array([int(text, 16) for text in kept["id"].to_pylist()], np.uint64)
    names, classes = _classes(kept)
    places = find_places(kept) if settings.placed else _nowhere(len(kept))
    division = divide(places, ids, classes, settings)
    balance = np.stack([np.asarray(classes.T @ (division.part == number)).ravel() for number in range(3)], axis=1)
    return Written(division, settings, names, balance.astype(np.int64))


def divided(kept: pa.Table, settings: SplitSettings) -> tuple[pa.Table, list[str]]:
    """Return the kept rows that are used, their column ``split`` filled in, and notes on what was done."""
    found = split_rows(kept, settings)
    used = np.flatnonzero(found.division.part != OUT)
    names = pa.array(np.array(PARTS, object)[found.division.part[used]], pa.string())
    table = kept.take(pa.array(used))
    return table.set_column(table.schema.get_field_index("split"), "split", names), found.lines()


def write_split(
    source: Path, target: Path, settings: SplitSettings, tick: step.Tick = lambda _done, _total: None
) -> Written:
    """Divide a manifest and write the split, and beside it ``STEM_left_out.csv`` where images are left out.

    Args:
        source: a manifest.
        target: ``.csv``: path (relative to the manifest where it can be), window where any row has one, split; or
            ``.parquet``: the manifest with its column split filled in, images that are left out not kept.
        settings: how.
        tick: told rows written and their number.

    Raises:
        UserError: another ending, or what :func:`split_rows` says.
    """
    if target.suffix not in (".csv", ".parquet"):
        raise UserError(f"-o {target}: a split is written as .csv (path, split) or as .parquet (the manifest with it).")
    if target.resolve() == source.resolve():
        raise UserError(f"-o {target} is the manifest itself; give another name.")
    table = manifests.read(source, COLUMNS)
    kept = table.filter(pc.fill_null(table["keep"], False))
    found = split_rows(kept, settings)
    if target.suffix == ".csv":
        _write_csv(kept, found, source.parent, target)
    else:
        _write_manifest(source, target, kept, found, tick)
    files = [target]
    left_out = target.with_name(f"{target.stem}_left_out.csv")
    if (found.division.part == OUT).any():
        _write_left_out(kept, found, source.parent, left_out)
        files.append(left_out)
    else:
        left_out.unlink(missing_ok=True)  # of an earlier split of this name
    return Written(found.division, settings, found.classes, found.balance, tuple(files))


def _classes(kept: pa.Table) -> tuple[tuple[str, ...], csr_array]:
    """Return the names of classes, and (n, C) of 0 and 1: what each image shows."""
    if pc.all(pc.is_null(kept["label"])).as_py():
        lists = kept["labels"].combine_chunks()
        row, label = pc.list_parent_indices(lists).to_numpy(), pc.list_flatten(lists)
    else:
        label = kept["label"].combine_chunks()
        row = np.flatnonzero(label.is_valid().to_numpy(zero_copy_only=False))
        label = label.drop_null()
    if not len(label):
        return (), csr_array((len(kept), 0))
    names = sorted(pc.unique(label).to_pylist())
    number = pc.index_in(label, pa.array(names)).to_numpy()
    return tuple(names), csr_array((np.ones(len(row)), (row, number)), shape=(len(kept), len(names)))


def _nowhere(n: int) -> Places:
    nan = np.full(n, np.nan)
    return Places(
        np.full((n, 2), np.nan), np.full((n, 4, 2), np.nan), nan, np.full(n, -1), [], nan, np.zeros(n, np.int64)
    )


def _write_csv(kept: pa.Table, found: Written, root: Path, target: Path) -> None:
    windowed = kept["window"].null_count < len(kept)
    header = ["path", *(["window"] if windowed else []), "split"]
    with written_aside(target) as aside, aside.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        for row, part in zip(_rows(kept, root), found.division.part.tolist(), strict=True):
            if part != OUT:
                writer.writerow([row[0], *([row[1]] if windowed else []), PARTS[part]])


def _write_left_out(kept: pa.Table, found: Written, root: Path, target: Path) -> None:
    division = found.division
    rows = list(_rows(kept, root))
    with written_aside(target) as aside, aside.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "window", "reason", "km", "held_out_path", "held_out_window"])
        for row, held, km in zip(*(column.tolist() for column in division.near), strict=True):
            writer.writerow([*rows[row], "too_near", f"{km:.6g}", *rows[held]])
        for row in sorted(set(np.flatnonzero(division.part == OUT).tolist()) - set(division.near.rows.tolist())):
            writer.writerow([*rows[row], "no_place", "", "", ""])


def _rows(kept: pa.Table, root: Path) -> Any:
    """Yield the path of each row, relative to a folder where it lies in it, and its window, as text."""
    start = f"{root.absolute()}/"
    for uri, window in zip(kept["uri"].to_pylist(), kept["window"].to_pylist(), strict=True):
        if is_url(uri):
            raise UserError(f"{uri} is a URL, which a CSV of paths cannot name; write the split as .parquet.")
        yield uri.removeprefix(start), "" if window is None else " ".join(map(str, window))


def _write_manifest(source: Path, target: Path, kept: pa.Table, found: Written, tick: step.Tick) -> None:
    division = found.division
    near = dict(zip(division.near.rows.tolist(), division.near.km.tolist(), strict=True))
    held = dict(zip(division.near.rows.tolist(), division.near.held.tolist(), strict=True))
    done = 0

    def change(table: pa.Table, _first: int) -> pa.Table:
        nonlocal done
        rows = np.flatnonzero(table["keep"].to_numpy(zero_copy_only=False))
        mine = division.part[done : done + len(rows)]
        names = np.full(len(table), None, object)
        names[rows] = [None if part == OUT else PARTS[part] for part in mine.tolist()]
        out = np.flatnonzero(mine == OUT)
        reasons = [
            f"too_near: {near[row]:.6g} km from {kept['uri'][held[row]].as_py()}, which is held out"
            if row in near
            else "no_place: the split is by geography"
            for row in (done + out).tolist()
        ]
        done += len(rows)
        table = table.set_column(table.schema.get_field_index("split"), "split", pa.array(names, pa.string()))
        return step.drop(table, rows[out], reasons)

    step.rewrite(source, target, change, tick)


def label_counts(found: Written) -> list[tuple[str, list[int]]]:
    """Return the classes and their images in train, val and test, the rarest in train first."""
    order = np.lexsort((found.balance.sum(axis=1), found.balance[:, 0]))
    return [(found.classes[row], found.balance[row].tolist()) for row in order]
