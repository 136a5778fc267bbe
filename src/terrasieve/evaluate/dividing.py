"""Dividing: which rows of a task are for training, validation and test, as a CSV, a share or the source itself says.

Between a task's source and ``tasks``; ``parts`` divides images with masks by it. Splits by geography are made before,
on the manifest (``split_files``), and arrive here as the source's own.
"""

from __future__ import annotations

import csv
import difflib
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from terrasieve.curate.tables import absolute
from terrasieve.errors import UserError
from terrasieve.evaluate.probe import held_out

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
DEFAULT_SHARE = 0.8
Window = tuple[int, int, int, int]


@dataclass(frozen=True)
class Row:
    """An image or window, its labels, and its split where the source names one."""

    uri: str
    labels: tuple[str, ...]
    window: Window | None = None
    split: str | None = None


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
    """Take the rows that the CSV lists, with its split and, where it has them, its class and its window."""
    with file.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        columns, lines = reader.fieldnames or [], list(reader)
    named = next((name for name in ("class", "label") if name in columns), None)
    if "path" not in columns or "split" not in columns:
        raise UserError(f"{file} has the columns {', '.join(columns)}; path and split are needed")
    windowed = "window" in columns
    # Without a column for it, windows of one file share its line in the CSV.
    by_name: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        by_name[row.uri, " ".join(map(str, row.window or ())) if windowed else ""].append(row)
    chosen: list[Row] = []
    missing: list[str] = []
    listed: set[tuple[str, str]] = set()
    for number, line in enumerate(lines, start=2):
        if not line["path"] or not line["split"] or (named and not line[named]):
            raise UserError(f"{file}, line {number}: an empty or missing value")
        name = (absolute(root / line["path"]), (line["window"] or "") if windowed else "")
        if name in listed:
            raise UserError(f"{file}, line {number}: {line['path']} is listed twice; keep one line per image")
        listed.add(name)
        found = by_name.pop(name, [])
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
    if by_name:
        notes.append(f"{sum(map(len, by_name.values()))} images are not in {file.name} and are left out")
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
