"""Tasks: which images a classification is scored on, their targets, and their split.

First stage of an evaluation; the integrator reads ``Task.uris`` and ``Task.windows`` through ``imagery`` and gives the
features to ``evaluate.protocol``. A task comes from class folders or from a manifest, its split from a CSV, from the
source itself, or from a keyed stratified draw. Public data sets are tasks by name (``data.catalog``).
"""

from __future__ import annotations

import csv
import difflib
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from terrasieve import manifest
from terrasieve.curate import catalogued
from terrasieve.curate.tables import absolute
from terrasieve.data import catalog
from terrasieve.errors import UserError
from terrasieve.evaluate.copies import count_copies
from terrasieve.evaluate.metrics import Kind
from terrasieve.evaluate.probe import held_out

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".jp2", ".webp", ".bmp"}
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
DEFAULT_SHARE = 0.8
Window = tuple[int, int, int, int]


@dataclass(frozen=True)
class Task:
    """A classification task, one entry per image or window.

    Attributes:
        name: of the folder or manifest.
        uris: absolute paths or URLs.
        windows: x, y, width, height in pixels of the file; None = the whole file.
        class_names: in the order of the targets' numbers or columns.
        targets: (N,) int64 class numbers, or (N, C) float32 multi-hot.
        split: "train", "val" or "test" per entry.
        kind: "multiclass" or "multilabel".
        leaked: test entries whose file is byte for byte one of train or val.
        notes: sentences on what was left out and what leaks, for the report.
        known: by uri, what the source says of an image beside its labels, in manifest columns.
    """

    name: str
    uris: tuple[str, ...]
    windows: tuple[Window | None, ...]
    class_names: tuple[str, ...]
    targets: Tensor
    split: tuple[str, ...]
    kind: Kind
    leaked: int = 0
    notes: tuple[str, ...] = ()
    known: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """An image or window, its labels, and its split where the source names one."""

    uri: str
    labels: tuple[str, ...]
    window: Window | None = None
    split: str | None = None


def load_task(spec: str, split: str | None = None, *, seed: int = 0, column: str | None = None) -> Task:
    """Find a task's images, targets and split.

    Args:
        spec: ``folder:PATH`` (the class is the name of the folder that an image lies in, at any depth below PATH),
            ``manifest:PATH`` or a path that ends in ``.parquet`` (label or labels, kept rows only), or
            ``catalog:NAME[/VARIANT][@PATH]`` (a public data set, see ``terrasieve datasets``).
        split: a CSV with the columns path, split and optionally class or label (paths absolute or relative to PATH; the
            CSV's own path relative to PATH or to the working folder); or ``random:0.8`` for that share of training
            samples, the rest test; None = the source's own (a manifest's column; folders train, val, test at the top
            of PATH) or else ``random:0.8``.
        seed: keys the random split.
        column: of a manifest, ``label`` (one class) or ``labels``; None = label where any row has one, else labels.

    Raises:
        UserError: an unknown spec, nothing found, no train or test rows, or a class without training samples.
    """
    prefix, path = parse(spec)
    notes: list[str] = []
    name, known = path.stem, {}
    if prefix == "catalog":
        rows, name, path, known = _catalog_rows(spec, notes)
    elif prefix == "folder":
        rows = _folder_rows(path, notes)
    else:
        rows = _manifest_rows(path, column, notes)
    rows, names, targets = divide_rows(rows, split, path.parent if prefix == "manifest" else path, seed, notes)
    parts = tuple(str(row.split) for row in rows)
    _check_parts(spec, parts, names, targets, notes)
    leaked = count_copies(rows)
    if leaked:
        notes.append(f"{leaked} test images are byte for byte images of train or val")
    return Task(
        name=name,
        uris=tuple(row.uri for row in rows),
        windows=tuple(row.window for row in rows),
        class_names=names,
        targets=targets,
        split=parts,
        kind="multilabel" if targets.ndim == 2 else "multiclass",
        leaked=leaked,
        notes=tuple(notes),
        known=known,
    )


def parse(spec: str) -> tuple[str, Path]:
    """Tell a task's kind of source (folder, manifest or catalog) and its path."""
    if spec.startswith(catalog.PREFIX):
        return "catalog", catalog.parse(spec)[2]
    prefix, colon, rest = spec.partition(":")
    if not colon and spec.endswith(".parquet"):
        prefix, rest = "manifest", spec
    if prefix not in ("folder", "manifest") or not rest:
        near = difflib.get_close_matches(prefix, ["folder", "manifest", "catalog"], n=1) if colon else ["folder"]
        meant = f"; did you mean {near[0]}:{rest if colon else spec}" if near else ""
        raise UserError(
            f"unknown task {spec!r}{meant}. A task is folder:PATH, manifest:PATH, FILE.parquet or catalog:NAME@PATH"
        )
    path = Path(absolute(Path(rest).expanduser()))
    if prefix == "folder" and not path.is_dir():
        raise UserError(f"task {spec!r}: there is no folder {path}")
    return prefix, path


def _folder_rows(root: Path, notes: list[str]) -> list[Row]:
    rows, loose = [], 0
    for file in sorted(root.rglob("*")):
        if file.suffix.lower() not in IMAGE_SUFFIXES or not file.is_file():
            continue
        inside = file.relative_to(root).parts
        part = SPLITS.get(inside[0].lower()) if len(inside) > 2 else None
        if len(inside) == 1:
            loose += 1
        else:
            rows.append(Row(str(file), (inside[-2],), split=part))
    if not rows:
        raise UserError(f"{root} holds no images in class folders (PATH/.../CLASS/image.jpg); loose images: {loose}")
    if loose:
        notes.append(f"{loose} images lie in no class folder and are left out")
    return rows


def _catalog_rows(spec: str, notes: list[str]) -> tuple[list[Row], str, Path, dict[str, dict[str, Any]]]:
    """Return rows, name, folder and what else is known of the images of a public data set."""
    found = catalogued.gather(spec)
    notes += found.notes
    rows = [Row(uri, labels, split=part) for uri, labels, part in catalogued.labelled(found)]
    return rows, found.name, found.root, {row["uri"]: row for row in found.entries}


def _manifest_rows(path: Path, column: str | None, notes: list[str]) -> list[Row]:
    table = manifest.read(path, ["uri", "window", "split", "label", "labels", "keep"]).to_pylist()
    kept = [row for row in table if row["keep"]]
    single = column == "label" if column else any(row["label"] for row in kept)
    rows = []
    for row in kept:
        labels = (row["label"],) if single else tuple(row["labels"]) if row["labels"] is not None else None
        if labels is None or labels == (None,):
            continue
        part = row["split"] and split_name(row["split"], str(path))
        rows.append(Row(row["uri"], labels, tuple(row["window"]) if row["window"] else None, part))
    if not rows:
        wanted = column or "label or labels"
        raise UserError(f"{path}: none of the {len(kept)} kept rows has a label; fill the column {wanted}")
    for count, what in ((len(table) - len(kept), "that are not kept"), (len(kept) - len(rows), "without a label")):
        if count:
            notes.append(f"{count} rows {what} are left out")
    return rows


def divide_rows(
    rows: list[Row], split: str | None, root: Path, seed: int, notes: list[str]
) -> tuple[list[Row], tuple[str, ...], Tensor]:
    """Give every row its split, and all of them their targets."""
    share = None
    if split is not None and split.startswith("random"):
        share, rows = _share(split), [replace(row, split=None) for row in rows]
    elif split is not None:
        rows = _by_csv(rows, _find_csv(split, root), root, notes)
    elif not all(row.split for row in rows):
        if any(row.split for row in rows):
            notes.append(f"{sum(not row.split for row in rows)} rows without a split are left out")
            rows = [row for row in rows if row.split]
        else:
            share = DEFAULT_SHARE
    multilabel = any(len(row.labels) != 1 for row in rows)
    names, targets = _targets(rows, multilabel)
    if share is not None:
        test = held_out(targets, 1 - share, seed).tolist()
        rows = [replace(row, split="test" if out else "train") for row, out in zip(rows, test, strict=True)]
        notes.append(f"random split, {share:g} train, stratified by class, seed {seed}; neighbours may leak")
    return rows, names, targets


def _share(split: str) -> float:
    try:
        share = float(split.removeprefix("random").removeprefix(":") or DEFAULT_SHARE)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise UserError(f"split {split!r}: write random:SHARE with 0 < SHARE < 1, e.g. random:0.8")
    return share


def _find_csv(split: str, root: Path) -> Path:
    for candidate in (root / split, Path(split).absolute()):
        if candidate.is_file():
            return candidate
    raise UserError(f"there is no split file {split!r}, neither in {root} nor in {Path.cwd()}; or write random:0.8")


def _by_csv(rows: list[Row], file: Path, root: Path, notes: list[str]) -> list[Row]:
    """Take the rows that the CSV lists, with its split and, where it has one, its class."""
    with file.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        columns, lines = reader.fieldnames or [], list(reader)
    named = next((name for name in ("class", "label") if name in columns), None)
    if "path" not in columns or "split" not in columns:
        raise UserError(f"{file} has the columns {', '.join(columns)}; path and split are needed")
    # A manifest's rows may be windows of one file, which share its uri and so its line in the CSV.
    by_uri: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_uri[row.uri].append(row)
    chosen: list[Row] = []
    missing: list[str] = []
    listed: set[str] = set()
    for number, line in enumerate(lines, start=2):
        if not line["path"] or not line["split"] or (named and not line[named]):
            raise UserError(f"{file}, line {number}: an empty or missing value")
        uri = absolute(root / line["path"])
        if uri in listed:
            raise UserError(f"{file}, line {number}: {line['path']} is listed twice; keep one line per image")
        listed.add(uri)
        found = by_uri.pop(uri, [])
        part = split_name(line["split"], f"{file}, line {number}")
        chosen += [replace(row, split=part, labels=(line[named],) if named else row.labels) for row in found]
        missing += [] if found else [line["path"]]
    if not chosen:
        raise UserError(
            f"none of the {len(lines)} paths in {file} is an image of {root} (first: {', '.join(missing[:3]) or '-'}); "
            "paths are absolute or relative to the task's folder"
        )
    if missing:
        notes.append(f"{len(missing)} paths of {file.name} are missing: {', '.join(missing[:10])}")
    if by_uri:
        notes.append(f"{sum(map(len, by_uri.values()))} images are not in {file.name} and are left out")
    return chosen


def split_name(name: str, where: str) -> str:
    """Return train, val or test, however it is spelt."""
    if name.lower() not in SPLITS:
        near = difflib.get_close_matches(name.lower(), SPLITS, n=1)
        raise UserError(
            f"{where}: unknown split {name!r}"
            + (f"; did you mean {near[0]!r}?" if near else "; use train, val or test")
        )
    return SPLITS[name.lower()]


def _targets(rows: list[Row], multilabel: bool) -> tuple[tuple[str, ...], Tensor]:
    names = tuple(sorted({label for row in rows for label in row.labels}))
    number = {name: position for position, name in enumerate(names)}
    if not multilabel:
        return names, torch.tensor([number[row.labels[0]] for row in rows])
    targets_NC = torch.zeros(len(rows), len(names))
    for position, row in enumerate(rows):
        targets_NC[position, [number[label] for label in row.labels]] = 1
    return names, targets_NC


def _check_parts(spec: str, parts: tuple[str, ...], names: tuple[str, ...], targets: Tensor, notes: list[str]) -> None:
    counts = Counter(parts)
    for part in ("train", "test"):
        if not counts[part]:
            found = ", ".join(f"{n} {name}" for name, n in counts.items())
            raise UserError(
                f"task {spec!r}: no {part} samples in the split ({found}); give another split or random:0.8"
            )
    seen = targets[torch.tensor([part == "train" for part in parts])]
    present = seen.sum(0) > 0 if targets.ndim == 2 else torch.bincount(seen, minlength=len(names)) > 0
    absent = [name for name, there in zip(names, present.tolist(), strict=True) if not there]
    if not absent:
        return
    listed = f"{len(absent)} of {len(names)} classes without a training sample: {', '.join(absent[:10])}"
    if targets.ndim == 1:
        raise UserError(f"task {spec!r}: {listed}; remove them or give another split")
    notes.append(listed)
