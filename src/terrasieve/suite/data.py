"""Data of a suite: where each task's images lie, whether they are here, and a manifest of folders of samples.

After ``settings``. Nothing is opened to find out whether a data set is here.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

from terrasieve import manifest
from terrasieve.curate import catalogued
from terrasieve.curate.scan import scan_entries
from terrasieve.curate.sources import Gathered
from terrasieve.data import catalog
from terrasieve.data.catalog import boxes, copy
from terrasieve.errors import UserError
from terrasieve.suite.settings import Samples, Task


def top(folder: Path | None) -> Path:
    """Return the folder of data: the one given, the one that ``TERRASIEVE_DATA`` names, or the working folder.

    Raises:
        UserError: there is no such folder.
    """
    found = (folder or Path(os.environ.get(catalog.VARIABLE) or ".")).expanduser().absolute()
    if not found.is_dir():
        said = "--data" if folder is not None else f"${catalog.VARIABLE}"
        raise UserError(f"{said}: there is no folder {found}. Name the folder in which the data sets' folders lie.")
    return found


def placed(task: Task, data: Path) -> tuple[str, str]:
    """Find a task's images.

    Args:
        task: of a suite.
        data: folder of data.

    Returns:
        The task as of ``evaluate.tasks.load_task``, or the folder of its samples, and ""; or "" and why it is not here.
    """
    if task.samples is not None:
        folder = data / task.samples.folder
        if not (folder / task.samples.table).is_file():
            return "", f"there is no {task.samples.table} in {folder}"
        return str(folder), ""
    assert task.data is not None
    if task.data.startswith(catalog.PREFIX):
        entry, variant, path = catalog.named(task.data)
        place = data / path if path else data / entry.name
        if not place.is_dir():
            return "", f"there is no folder {place}; terrasieve datasets {entry.name} says how to obtain it"
        if copy.find(entry, place) is None:
            return "", f"{place} is no copy of it; terrasieve datasets {entry.name} -d {place} says what it lacks"
        return f"{catalog.PREFIX}{entry.name}{'/' * bool(variant)}{variant}@{place}", ""
    prefix, _, path = task.data.rpartition(":")
    place = data / path
    return (f"{prefix or 'manifest'}:{place}", "") if place.exists() else ("", f"there is no {place}")


def manifest_of(task: Task, spec: str, folder: Path) -> str:
    """Write a manifest where a task has none: of samples, or of a data set with boxes.

    Args:
        task: of a suite.
        spec: from :func:`placed`.
        folder: to write to.

    Returns:
        ``spec``, or ``manifest:PATH``.
    """
    path = folder / f"{task.name}.parquet"
    if task.samples is not None:
        manifest.write(scan_entries(_listed(task.samples, Path(spec)), verify="header", workers=1).table, path)
    elif task.boxes is not None and spec.startswith(catalog.PREFIX):
        found = catalogued.gather(spec)
        table = catalogued.table_of(found)
        manifest.write(table, path)
        held = catalogued.boxes_of(found, table)
        if held is None:
            raise UserError(f"task {task.name}: {spec} has no boxes.")
        boxes.write(held, path)
    else:
        return spec
    return f"manifest:{path}"


def _listed(samples: Samples, folder: Path) -> Gathered:
    """List the images of samples; a sample whose image is not there is a row with its reason, found by the scan."""
    with (folder / samples.table).open(newline="", encoding="utf-8-sig") as stream:
        lines = list(csv.DictReader(stream))
    if not lines or not {"sample", "split"} <= set(lines[0]):
        raise UserError(f"{folder / samples.table}: the columns sample and split are needed.")
    splits = {"validation": "val", "valid": "val"}
    return Gathered(
        entries=[
            {
                "uri": str(folder / line["sample"] / samples.image),
                "split": splits.get(line["split"], line["split"]),
                "labels": sorted(line["labels"].split(";")) if line.get("labels") else None,
                "bands": list(samples.bands),
            }
            for line in lines
        ]
    )
