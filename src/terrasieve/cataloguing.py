"""Cataloguing: what ``terrasieve datasets`` says and does, from the catalog's entries to a checked copy and a manifest.

After ``curate.catalogued``, before the command line. Everything here returns text or tables; nothing is printed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from terrasieve import manifest
from terrasieve.curate import catalogued
from terrasieve.data import catalog
from terrasieve.data.catalog import boxes, copy, download
from terrasieve.data.catalog.entry import Entry
from terrasieve.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Checked:
    """A copy that was compared with its entry.

    Attributes:
        lines: what to tell.
        whole: nothing is missing.
        found: its images; None = there is not one.
    """

    lines: tuple[str, ...]
    whole: bool
    found: catalogued.Found | None


def named(name: str, folder: Path | None) -> tuple[Entry, str, Path | None]:
    """Return the entry and the variant of ``NAME[/VARIANT][@PATH]``, and where its copy is looked for.

    Args:
        name: of the data set.
        folder: of the copy, or one that holds it under its name; None = PATH, or else the environment's.
    """
    entry, variant, path = catalog.named(name)
    if folder is None and path:
        folder = Path(path).expanduser()
    if folder is not None:
        return entry, variant, folder / entry.name if (folder / entry.name).is_dir() else folder
    try:
        return entry, variant, catalog.place(entry)
    except UserError:
        return entry, variant, None


def check(entry: Entry, variant: str, place: Path, *, checksums: bool = False) -> Checked:
    """Compare a copy with its entry, without opening an image.

    Args:
        entry: of the catalog.
        variant: of the entry; "" = the first.
        place: folder of the copy, or one above it.
        checksums: also read the archives that lie there.

    Raises:
        UserError: the folder does not look like the data set.
    """
    held = copy.opened(entry, place, variant)
    found = copy.look(entry, held)
    problems = copy.diagnosis(entry, held, found)
    name = f"{entry.name}/{held.variant}" if held.variant else entry.name
    splits = ", ".join(f"{count:,} {split or 'without a split'}" for split, count in sorted(found.splits.items()))
    lines = [f"{entry.title}, {name}, in {held.root}", f"{len(found.items):,} images are here ({splits or 'none'})"]
    if checksums:
        for archive, verdict in copy.checksums(entry, held.root):
            lines.append(f"{archive}: {verdict}")
            problems += [f"{archive}: its checksum is not the published one; fetch it again"] * (verdict == "damaged")
    if problems:
        lines += [f"- {line}" for line in problems]
    else:
        lines.append("whole: every image that is listed or published is here")
    if found.items:
        lines.append(f"use it: terrasieve {_use(entry, f'{catalog.PREFIX}{name}@{held.root}')}")
        return Checked(tuple(lines), not problems, catalogued.of_items(entry, held, found, tuple(problems)))
    lines += ["Expected:", entry.layout.strip("\n")]
    return Checked(tuple(lines), False, None)


def _use(entry: Entry, task: str) -> str:
    """Return the command that a copy is for."""
    if entry.kind in ("multiclass", "multilabel"):
        return f"evaluate RUN --task {task}"
    if entry.kind == "segmentation":
        return f"adapt RECIPE task.data={task}"
    return f"datasets {task.removeprefix(catalog.PREFIX)} -o {entry.name}.parquet"


def write_manifest(checked: Checked, output: Path, workers: int | None = None, tick: Tick | None = None) -> list[str]:
    """Write the manifest of a copy, and its boxes beside it; return what was written, line by line.

    Raises:
        UserError: the copy holds no image.
    """
    if checked.found is None:
        raise UserError(f"There is nothing to write to {output}: the copy holds no image.")
    table = catalogued.table_of(checked.found, workers, tick)
    manifest.write(table, output)
    kept = sum(table["keep"].to_pylist())
    lines = [f"manifest: {output}, {table.num_rows:,} rows, {kept:,} usable"]
    found = catalogued.boxes_of(checked.found, table)
    if found is not None:
        lines.append(f"boxes: {boxes.write(found, output)}, {found.num_rows:,} boxes")
    return lines


def fetch(entry: Entry, place: Path | None, tick: Tick | None = None) -> Iterator[str]:
    """Download a data set into ``place``: archives that have a plain address, else through TorchGeo's class.

    Returns:
        What was done, line by line.

    Raises:
        UserError: no folder is given, nobody can fetch it, or the network cannot be reached.
    """
    if place is None:
        raise UserError(f"Where to? Give a folder: terrasieve datasets {entry.name} --download -d FOLDER")
    plain = [archive for archive in entry.archives if archive.url]
    if not plain:
        if not entry.torchgeo:
            raise UserError(f"{entry.title} has no plain address: its makers give it out at {entry.page}.")
        yield download.through_torchgeo(entry, place)
        return
    for archive in plain:
        yield download.fetch(archive, place, tick)
    yield f"unpack the archives in {place}, so that it looks like this:\n{entry.layout.strip()}"


def how_to_obtain(entry: Entry) -> list[str]:
    """Return what a person needs to know of a data set, line by line."""
    lines = [
        f"{entry.title}: {entry.summary}",
        f"task: {entry.kind}, {len(entry.classes)} classes" if entry.classes else f"task: {entry.kind}",
        f"licence: {entry.licence}",
        f"cite: {entry.citation}",
        f"obtain: {entry.page}",
        *(
            f"  {archive.name}  {archive.url or '(at the page)'}{f'  md5 {archive.md5}' if archive.md5 else ''}"
            for archive in entry.archives
        ),
    ]
    if any(archive.url for archive in entry.archives):
        lines.append(f"  or: terrasieve datasets {entry.name} --download -d FOLDER")
    if entry.variants:
        lines.append(f"variants: {', '.join(f'{entry.name}/{name}' for name in entry.variants)}")
    counts = entry.expected(entry.variants[0] if entry.variants else "")
    if counts:
        lines.append(f"images: {', '.join(f'{count:,} {split}'.strip() for split, count in counts.items())}")
    lines += [f"note: {entry.note}"] if entry.note else []
    return [*lines, "layout:", entry.layout.strip("\n")]


def overview(folder: Path | None = None) -> Table:
    """Return the table of all data sets and whether a copy is in the folder (None = the environment's)."""
    from rich.table import Table

    table = Table()
    for column in ("data set", "task", "classes", "images", "here"):
        table.add_column(column, justify="right" if column in ("classes", "images") else "left")
    for entry in catalog.ENTRIES.values():
        _, _, place = named(entry.name, folder) if folder is None else (0, 0, folder / entry.name)
        here = place is not None and place.is_dir() and copy.find(entry, place) is not None
        count = _count(entry)
        table.add_row(
            entry.name,
            entry.kind,
            str(len(entry.classes) or ""),
            f"{count:,}" if count else "",
            "yes" if here else "-",
        )
    table.caption = "terrasieve datasets NAME: how to obtain it; -d FOLDER: whether a copy is whole"
    return table


def _count(entry: Entry) -> int:
    counts = entry.expected(entry.variants[0] if entry.variants else "")
    return counts.get("", sum(counts.values()))


def markdown() -> str:
    """Return the table of docs/datasets.md."""
    head = ["data set", "task", "classes", "images", "licence", "splits and variants", "coordinates", "source"]
    rows = [head, ["---"] * len(head)]
    for entry in catalog.ENTRIES.values():
        counts = entry.expected(entry.variants[0] if entry.variants else "")
        splits = ", ".join(f"{split} {count:,}" for split, count in counts.items() if split)
        variants = f"variants {', '.join(entry.variants)}" if entry.variants else ""
        rows.append(
            [
                f"`{entry.name}`", f"{entry.kind}: {entry.summary}", str(len(entry.classes) or ""),
                f"{_count(entry):,}" if counts else "", entry.licence, "; ".join(x for x in (splits, variants) if x),
                entry.coordinates or "none", f"[{entry.title}]({entry.page})",
            ]
        )  # fmt: skip
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |\n" for row in rows)
