"""Tables: CSV files that name images and say what is known of them.

Called by ``sources``. A CSV has a header line; its columns are listed in ``COLUMNS``, in any order and case.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from terrasieve.errors import UserError
from terrasieve.imagery import geo
from terrasieve.imagery.headers import is_remote, parse_time
from terrasieve.remote import is_url

COLUMNS = {
    "uri": ("path", "uri", "file", "filename", "image", "sample"),  # relative ones start at the CSV's folder
    "lon": ("lon", "longitude", "x_lon"),
    "lat": ("lat", "latitude", "y_lat"),
    "left": ("left",),  # with bottom, right, top and epsg: the footprint of a file that has none of its own
    "bottom": ("bottom",),
    "right": ("right",),
    "top": ("top",),
    "epsg": ("epsg",),
    "label": ("label", "class"),
    "labels": ("labels",),  # several, separated by semicolons
    "split": ("split",),
    "datetime": ("datetime", "date", "time"),
    "licence": ("licence", "license"),
    "source": ("source",),
    "sensor": ("sensor",),
    "gsd_m": ("gsd_m",),
}
_SPLITS = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}


def absolute(path: str | Path) -> str:
    """Return an absolute path without "..", links left as they are: a manifest names files as their owner does."""
    return os.path.normpath(Path(path).absolute())


def split_name(text: str) -> str | None:
    """Return "train", "val" or "test" for the usual spellings, else None."""
    name = _SPLITS.get(text.lower(), text.lower())
    return name if name in ("train", "val", "test") else None


def read_csv(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Read a CSV into entries.

    Args:
        path: UTF-8, comma-separated, with a header line.
        notes: gets a sentence on columns that are not used, and one on times and bounds that mean nothing: they are
            left out.

    Returns:
        Rows of manifest columns with an absolute ``uri``, plus ``bounds`` (left, bottom, right, top) and ``epsg``.

    Raises:
        UserError: no such file, no column of paths, a value that cannot be read (with its line).
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            head = next(reader, [])
            wanted = _columns(path, head)
            unused = [name for i, name in enumerate(head) if i not in wanted.values()]
            if unused:
                notes.append(f"{path}: columns not used: {', '.join(unused)}.")
            folder = absolute(path.parent)
            out: list[str] = []
            entries = [_entry(path, reader.line_num, values, wanted, folder, out) for values in reader if any(values)]
            if out:
                few = "; ".join(out[:3]) + ("; ..." if len(out) > 3 else ".")
                notes.append(f"Times and bounds that mean nothing, and are left out: {len(out):,}. {few}")
            return entries
    except FileNotFoundError as error:
        raise UserError(f"There is no CSV file {path}. Relative paths start at {Path.cwd()}.") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"Cannot read {path} as a UTF-8 CSV file: {error}.") from error


def _columns(path: Path, head: list[str]) -> dict[str, int]:
    names = [name.strip().lower() for name in head]
    found = {column: names.index(name) for column, known in COLUMNS.items() for name in known[::-1] if name in names}
    if "uri" not in found:
        raise UserError(
            f"{path} has no column of image paths: its header is {', '.join(head) or 'empty'}. "
            f"Name one of them {' or '.join(COLUMNS['uri'])}."
        )
    return found


def _entry(
    path: Path, line: int, values: list[str], wanted: dict[str, int], folder: str, out: list[str]
) -> dict[str, Any]:
    texts = {name: values[i].strip() for name, i in wanted.items() if i < len(values) and values[i].strip()}
    where = f"{path}, line {line}"
    uri = texts.pop("uri", None)
    if uri is None:
        raise UserError(f"{where}: the image's path is empty.")
    return {
        "uri": uri if is_url(uri) or is_remote(uri) else absolute(Path(folder, uri)),
        **parse_row(where, texts, out),
    }


def parse_row(where: str, texts: dict[str, str], out: list[str] | None = None) -> dict[str, Any]:
    """Turn texts into values of a manifest's columns.

    Args:
        where: they stand, for the message.
        texts: by name of ``COLUMNS``, not empty.
        out: gets a sentence on every time and bounds that mean nothing, which are then left out; None = they raise.

    Returns:
        Manifest columns, plus ``bounds`` (left, bottom, right, top) and ``epsg``.

    Raises:
        UserError: a value that cannot be read.
    """

    def refuse(problem: str, spare: bool = False) -> None:
        if out is None or not spare:
            raise UserError(f"{where}: {problem}.")
        out.append(f"{where}: {problem}")

    def take(name: str, change: Callable[[str], Any], meaning: str, spare: bool = False) -> Any:
        if name not in texts:
            return None
        try:
            value = change(texts[name])
        except ValueError:
            value = None
        if value is None:
            refuse(
                f"{name} is {texts[name]!r}, but should be {meaning}{_swapped(texts) if name == 'lat' else ''}", spare
            )
        return value

    numbers = {name: take(name, float, "a number") for name in ("left", "bottom", "right", "top", "gsd_m")}
    bounds = tuple(numbers[name] for name in ("left", "bottom", "right", "top"))
    if None not in bounds and not (bounds[0] < bounds[2] and bounds[1] < bounds[3]):
        refuse(f"left, bottom, right, top are {bounds}, which enclose nothing", spare=True)
        bounds = (None,) * 4
    labels = texts.get("labels")
    entry = {
        "lon": take("lon", lambda text: _within(text, 180), "degrees from -180 to 180"),
        "lat": take("lat", lambda text: _within(text, 90), "degrees from -90 to 90"),
        "split": take("split", split_name, "train, val or test"),
        "datetime": take("datetime", parse_time, "a time such as 2020-05-18T13:44:22Z", spare=True),
        "epsg": take("epsg", _epsg, "a known EPSG code such as 32721"),
        "bounds": None if None in bounds else bounds,
        "gsd_m": numbers["gsd_m"],
        "labels": [part.strip() for part in labels.split(";") if part.strip()] if labels else None,
        **{name: texts.get(name) for name in ("label", "licence", "source", "sensor")},
    }
    return {name: value for name, value in entry.items() if value is not None}


def _swapped(texts: dict[str, str]) -> str:
    """Say so where a latitude that cannot be would be a longitude, and the longitude a latitude."""
    try:
        fits = abs(float(texts["lat"])) <= 180 and abs(float(texts["lon"])) <= 90
    except (KeyError, ValueError):
        return ""
    return "; longitude and latitude are swapped, most likely: exchange the two columns' names" if fits else ""


def _epsg(text: str) -> int | None:
    return int(text) if geo.is_on_earth(f"EPSG:{int(text)}") else None


def _within(text: str, limit: float) -> float | None:
    value = float(text)
    return value if -limit <= value <= limit else None
