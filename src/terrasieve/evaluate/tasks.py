"""Tasks: which images a classification is scored on, their targets, and their split.

First stage of an evaluation; the integrator reads ``Task.uris`` and ``Task.windows`` through ``imagery`` and gives the
features to ``evaluate.protocol``. A task comes from class folders or from a manifest, its split from a CSV, from the
source itself, or from a keyed stratified draw.
"""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
import torch
from torch import Tensor

from terrasieve import manifest
from terrasieve.curate.tables import absolute
from terrasieve.errors import UserError
from terrasieve.evaluate import split_files, splits
from terrasieve.evaluate.dividing import SPLITS, Row, Window, divide_rows, split_name
from terrasieve.evaluate.metrics import Kind
from terrasieve.evaluate.splits import SplitSettings

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".jp2", ".webp", ".bmp"}


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


def load_task(spec: str, split: str | None = None, *, seed: int = 0, column: str | None = None) -> Task:
    """Find a task's images, targets and split.

    Args:
        spec: ``folder:PATH`` (the class is the name of the folder that an image lies in, at any depth below PATH),
            ``manifest:PATH`` or a path that ends in ``.parquet`` (label or labels, kept rows only).
        split: a CSV with the columns path, split and optionally window and class or label (paths absolute or relative
            to PATH; the CSV's own path relative to PATH or to the working folder); ``random:0.8`` for that share of
            training samples, the rest test; of a manifest ``blocks:2,buffer_km=10`` or ``regions:8`` (see
            ``splits.parse``); None = the source's own (a manifest's column; folders train, val, test at the top of
            PATH) or else ``random:0.8``.
        seed: keys the random split.
        column: of a manifest, ``label`` (one class) or ``labels``; None = label where any row has one, else labels.

    Raises:
        UserError: an unknown spec, nothing found, no train or test rows, or a class without training samples.
    """
    prefix, path = parse(spec)
    notes: list[str] = []
    spatial = splits.parse(split or "", seed)
    if spatial and prefix == "folder":
        raise UserError(
            f"split {split!r} needs coordinates, which a folder does not give: terrasieve index {path} -o "
            "FILE.parquet, then --task manifest:FILE.parquet"
        )
    split = None if spatial else split
    rows = _folder_rows(path, notes) if prefix == "folder" else _manifest_rows(path, column, spatial, notes)
    rows, names, targets = divide_rows(rows, split, path if prefix == "folder" else path.parent, seed, notes)
    parts = tuple(str(row.split) for row in rows)
    _check_parts(spec, parts, names, targets, notes)
    leaked = _count_leaks(rows)
    if leaked:
        notes.append(f"{leaked} test images are byte for byte images of train or val")
    return Task(
        name=path.stem,
        uris=tuple(row.uri for row in rows),
        windows=tuple(row.window for row in rows),
        class_names=names,
        targets=targets,
        split=parts,
        kind="multilabel" if targets.ndim == 2 else "multiclass",
        leaked=leaked,
        notes=tuple(notes),
    )


def parse(spec: str) -> tuple[str, Path]:
    """Tell a task's kind of source, folder or manifest, and its path."""
    prefix, colon, rest = spec.partition(":")
    if not colon and spec.endswith(".parquet"):
        prefix, rest = "manifest", spec
    if prefix not in ("folder", "manifest") or not rest:
        near = difflib.get_close_matches(prefix, ["folder", "manifest"], n=1) if colon else ["folder"]
        meant = f"; did you mean {near[0]}:{rest if colon else spec}" if near else ""
        raise UserError(f"unknown task {spec!r}{meant}. A task is folder:PATH, manifest:PATH or FILE.parquet")
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


def _manifest_rows(path: Path, column: str | None, spatial: SplitSettings | None, notes: list[str]) -> list[Row]:
    names = ["uri", "window", "split", "label", "labels", "keep"]
    table = manifest.read(path, split_files.COLUMNS if spatial else names)
    chosen, total = table.filter(pc.fill_null(table["keep"], False)), len(table)
    dropped = total - len(chosen)
    if spatial:
        chosen, told = split_files.divided(chosen, spatial)
        notes += told
    kept = chosen.select(names).to_pylist()
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
    for count, what in ((dropped, "that are not kept"), (len(kept) - len(rows), "without a label")):
        if count:
            notes.append(f"{count} rows {what} are left out")
    return rows


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


def _count_leaks(rows: list[Row]) -> int:
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
