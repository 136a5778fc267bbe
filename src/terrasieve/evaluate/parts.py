"""Parts of a task: the images to train, validate and test on, with what is known of each.

After ``tasks``, which says what an image's label and split are; ``adapt`` trains and scores on the parts. A validation
part is taken from train where the task has none, never from test. Splits are drawn with a key of their own, not the
run's seed, so that runs of several seeds share a test set.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from terrasieve import keyed, manifest
from terrasieve.curate import catalogued
from terrasieve.curate.scan import scan, scan_entries
from terrasieve.curate.sources import Gathered
from terrasieve.data import images as imagery
from terrasieve.data.boxes import find_boxes
from terrasieve.data.images import Images
from terrasieve.data.masks import Masks, find_masks
from terrasieve.data.truth import Truth
from terrasieve.errors import UserError
from terrasieve.evaluate import split_files, splits, tasks
from terrasieve.evaluate.dividing import Row, divide_rows, split_name
from terrasieve.evaluate.probe import HELD_OUT, held_out
from terrasieve.train.settings import TaskSettings

LEAST = {"train": 1, "val": 1, "test": 1}
LABELLED = 2  # validation images at least: one label does not tell good weights from bad, one mask does
LOOKED_INTO = 256  # masks read before a run starts
Kind = Literal["multiclass", "multilabel", "segmentation", "detection"]


@dataclass(frozen=True)
class Part:
    """Images and what is known of them, row by row."""

    images: Images
    truth: Truth


@dataclass(frozen=True)
class Divided:
    """A task's images, found and divided.

    Attributes:
        table: manifest of all of them, row by row; its hash is the run's.
        images: all of them.
        truth: what is known of them.
        rows: of train, val and test: (k,) int64 each.
        classes: names, in the order of the numbers.
        kind: of the task.
        notes: sentences on what was left out and how it was divided.
    """

    table: pa.Table
    images: Images
    truth: Truth
    rows: dict[str, np.ndarray]
    classes: tuple[str, ...]
    kind: Kind
    notes: tuple[str, ...]

    @property
    def parts(self) -> dict[str, Part]:
        """train, val, test."""
        return {name: Part(self.images.take(rows), self.truth.take(rows)) for name, rows in self.rows.items()}


def divide(task: TaskSettings, bands: tuple[str, ...] | None) -> Divided:
    """Find a task's images and truth and divide them into train, val and test.

    Args:
        task: where they are.
        bands: to be read; None = what all images have.

    Raises:
        UserError: for anything that is wrong with the task.
    """
    if task.boxes is not None:
        return _divide_boxes(task, bands)
    if task.masks is not None:
        return _divide_dense(task, bands)
    found = tasks.load_task(task.data, task.split, column=task.labels)
    table, images, entries, notes = images_of(found, bands)
    labels = found.targets[entries]
    split, more = with_validation([found.split[entry] for entry in entries], labels)
    rows = _rows_by_part(task, split, val=LABELLED)
    return Divided(
        table, images, Truth(labels=labels), rows, found.class_names, found.kind, (*found.notes, *notes, *more)
    )


def _divide_dense(task: TaskSettings, bands: tuple[str, ...] | None) -> Divided:
    """Divide the images of a manifest, which have masks."""
    table, images, masks, split, notes = masked_images(task, bands)
    split, more = with_validation(split, None)
    rows = _rows_by_part(task, split)
    _look_into(masks)
    return Divided(table, images, Truth(masks=masks), rows, masks.classes, "segmentation", (*notes, *more))


def masked_images(
    task: TaskSettings, bands: tuple[str, ...] | None
) -> tuple[pa.Table, Images, Masks, list[str], list[str]]:
    """Find the images of a manifest and their masks.

    Args:
        task: with ``masks``.
        bands: to be read; None = what all images have.

    Returns:
        Manifest, images and masks row by row, train, val or test of each, and notes.
    """
    assert task.masks is not None
    table, images, uris, _, split, notes = _chosen(task, bands)
    return table, images, find_masks(images, task.masks, uris), split, notes


def _divide_boxes(task: TaskSettings, bands: tuple[str, ...] | None) -> Divided:
    """Divide the images of a manifest, which have boxes."""
    assert task.boxes is not None
    table, images, _, path, split, notes = _chosen(task, bands)
    split, more = with_validation(split, None)
    rows = _rows_by_part(task, split)
    boxes, told = find_boxes(table, path, task.boxes)
    return Divided(table, images, Truth(boxes=boxes), rows, boxes.classes, "detection", (*notes, *more, *told))


def _chosen(
    task: TaskSettings, bands: tuple[str, ...] | None
) -> tuple[pa.Table, Images, dict[str, str] | None, Path, list[str], list[str]]:
    """Return a manifest's used rows, their images, masks that the catalog knows, its path, split and notes."""
    prefix, path = tasks.parse(task.data)
    notes: list[str] = []
    uris: dict[str, str] | None = None
    if prefix == "catalog" and task.boxes is None:
        found = catalogued.gather(task.data)
        table, uris, notes = catalogued.table_of(found), found.masks, list(found.notes)
    elif prefix == "manifest":
        table = manifest.read(path)
    else:
        raise UserError(
            f"task.data {task.data!r}: images with masks or boxes are named by a manifest; make one with "
            "terrasieve index, or of a public data set with terrasieve datasets NAME -o FILE.parquet."
        )
    table = table.filter(pc.fill_null(table["keep"], False))
    spatial = splits.parse(task.split or "")
    if spatial:
        table, told = split_files.divided(table, spatial)
        notes += told
    split, chosen = _split_rows(table, None if spatial else task.split, path.parent, notes)
    table = table.take(pa.array(chosen))
    images = imagery.from_table(table, bands)
    return table, images, uris, path, split, notes


def _look_into(masks: Masks) -> None:
    """Read some masks before anything starts, since a number that means nothing is seldom in one alone."""
    masks.count(keyed.numpy_generator(0, "masks").permutation(len(masks))[:LOOKED_INTO].tolist())


def _split_rows(table: pa.Table, split: str | None, root: Path, notes: list[str]) -> tuple[list[str], list[int]]:
    """Divide a manifest's kept rows as ``tasks.load_task`` does, whatever labels they have.

    Returns:
        train, val or test of each row that is used, and which rows those are; ``notes`` gets what there is to say.
    """
    columns = zip(*(table[name].to_pylist() for name in ("uri", "window", "split")), strict=True)
    rows = [
        Row(uri, ("",), tuple(window) if window else None, part and split_name(part, "manifest"))
        for uri, window, part in columns
    ]
    number = {(row.uri, row.window): position for position, row in enumerate(rows)}
    divided, _, _ = divide_rows(rows, split, root, 0, notes)
    notes[:] = [note.replace(", stratified by class", "") for note in notes]  # masks have no class of the image
    return [str(row.split) for row in divided], [number[row.uri, row.window] for row in divided]


def with_validation(split: list[str], labels: Tensor | None) -> tuple[list[str], list[str]]:
    """Set a part of train aside for validation where a split has none; never a part of test.

    Args:
        split: train, val or test of every image.
        labels: of every image; their classes are kept on both sides. None = drawn without regard to them.

    Returns:
        The split, and notes on what was done.
    """
    rows = [row for row, part in enumerate(split) if part == "train"]
    least = LEAST["val"] if labels is None else LABELLED
    if "val" in split or len(rows) <= least:
        return split, []
    strata = torch.zeros(len(rows), dtype=torch.long) if labels is None else labels[rows]
    held = held_out(strata, HELD_OUT, 0)
    if held.sum() < least:  # of many small classes nothing can be held out class by class
        held = held_out(torch.zeros(len(rows), dtype=torch.long), max(HELD_OUT, least / len(rows)), 0)
    aside = {row for row, out in zip(rows, held.tolist(), strict=True) if out}
    return (
        ["val" if row in aside else part for row, part in enumerate(split)],
        [f"no validation split: {len(aside)} of {len(rows)} training images are set aside for it, by a keyed draw"],
    )


def _rows_by_part(task: TaskSettings, split: list[str], **more: int) -> dict[str, np.ndarray]:
    """Return the rows of each part; ``more`` are parts that need more images than ``LEAST``."""
    rows = {name: np.flatnonzero([part == name for part in split]) for name in LEAST}
    for name, least in (LEAST | more).items():
        if len(rows[name]) < least:
            listed = ", ".join(f"{len(own)} {part}" for part, own in rows.items())
            raise UserError(
                f"task.data {task.data}: {len(rows[name])} {name} image(s) that can be read ({listed}); at least "
                f"{least} are needed. Give more images or another task.split."
            )
    return rows


def images_of(task: tasks.Task, bands: tuple[str, ...] | None) -> tuple[pa.Table, Images, list[int], list[str]]:
    """Find the headers of a task's files.

    Args:
        task: names the files.
        bands: to be read; None = what all have.

    Returns:
        A manifest of the images and the images themselves, for each its entry of the task, and a note for every image
        that is left out because it cannot be read.
    """
    uris = sorted(set(task.uris))
    if task.known:
        listed = Gathered(entries=[dict(task.known[uri]) for uri in uris])
        scanned = scan_entries(listed)
    else:
        scanned = scan(uris, labels="none")
    found = {row["uri"]: row for row in scanned.table.to_pylist()}
    rows: list[dict[str, Any]] = []
    entries: list[int] = []
    notes: list[str] = []
    for entry, (uri, window) in enumerate(zip(task.uris, task.windows, strict=True)):
        row = found[uri]
        if not row["keep"]:
            notes.append(f"left out {uri}: {row['reason']}")
            continue
        size = {"window": list(window), "width": window[2], "height": window[3]} if window else {}
        rows.append({**row, **size, "id": manifest.row_id(uri, window)})
        entries.append(entry)
    table = manifest.rows_to_table(rows)
    return table, imagery.from_table(table, bands), entries, notes
