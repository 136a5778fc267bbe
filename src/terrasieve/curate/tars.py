"""Tars: the images inside a WebDataset shard, with what the files beside them say.

Called by ``listing`` for tars among the sources. Files of a tar that share their name up to its first dot are a sample;
its images become entries, and of its other files are read: ``.cls`` (the label), ``.txt`` (the label too, where there
is no ``.cls`` and the text is one line of at most 40 characters; longer ones are captions), ``.json`` (keys named as
the columns of a CSV, ``tables.COLUMNS``). Source: WebDataset's naming convention.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from terrasieve.curate.sources import EXTENSIONS, Entry
from terrasieve.curate.tables import COLUMNS, parse_row
from terrasieve.errors import UserError
from terrasieve.imagery.members import member_uri

_SIDECARS = {".cls", ".txt", ".json"}
_MOST_BYTES = 1_000_000  # of a file beside an image
_LABEL_CHARACTERS = 40


def members(path: str, ignored: Counter[str]) -> Iterator[Entry]:
    """Yield an entry for each image in a tar, in the tar's order; a last one with a "reason" where the tar is broken.

    Args:
        path: of the tar, absolute.
        ignored: gets the extensions of files that are neither images nor read.
    """
    images: list[Entry] = []
    beside: dict[str, str] = {}
    key = None
    if Path(path).exists() and not Path(path).is_file():
        yield {"uri": path, "reason": "not_an_image: a pipe, a device or a folder, not a file"}
        return
    try:
        with Path(path).open("rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                if not member.isreg():
                    continue
                name = PurePath(member.name)
                now = str(name.parent / name.name.split(".")[0])
                if now != key:
                    yield from _sample(images, beside)
                    images, beside, key = [], {}, now
                extension = name.suffix.lower()
                if extension in EXTENSIONS:
                    uri = member_uri(path, member.name, member.offset_data, member.size)
                    images.append({"uri": uri, "offset": member.offset_data})
                elif extension in _SIDECARS and member.size <= _MOST_BYTES:
                    beside[extension] = _text(tar, member)
                else:
                    ignored[extension] += 1
            _check_end(stream, tar)
        broken = []
    except (tarfile.TarError, OSError, EOFError) as error:
        broken = [{"uri": path, "reason": f"{_code(error)}: {error}"}]
    yield from _sample(images, beside)
    yield from broken


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    stream = tar.extractfile(member)
    return "" if stream is None else stream.read().decode("utf-8", "replace").strip()


def _sample(images: list[Entry], beside: dict[str, str]) -> list[Entry]:
    known: dict[str, Any] = {}
    if images and ".json" in beside:
        known = _of_json(beside[".json"], images[0]["uri"])
    text = beside.get(".txt", "")
    if ".cls" in beside:
        known["label"] = beside[".cls"]
    elif text and "label" not in known and len(text) <= _LABEL_CHARACTERS and "\n" not in text:
        known["label"] = text
    return [known | image for image in images]


def _of_json(text: str, uri: str) -> dict[str, Any]:
    """Return what a sample's JSON says that a manifest has a column for; values that it cannot hold are left out."""
    try:
        values = json.loads(text)
    except ValueError:
        return {}
    if not isinstance(values, dict):
        return {}
    known: dict[str, Any] = {}
    for column, names in COLUMNS.items():
        value = next((values[name] for name in names if values.get(name) is not None), None)
        if column == "uri" or value is None:
            continue
        words = ";".join(map(str, value)) if isinstance(value, list) else str(value)
        try:
            known |= parse_row(uri, {column: words})
        except UserError:
            continue
    return known


def _check_end(stream: Any, tar: tarfile.TarFile) -> None:
    """Raise for a tar that was cut inside its last file, of which tarfile reads the header alone."""
    stream.seek(0, 2)
    last = tar.getmembers()[-1] if tar.getmembers() else None
    if last is not None and last.offset_data + last.size > stream.tell():
        raise tarfile.ReadError(f"the tar ends inside {last.name}")


def _code(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, PermissionError):
        return "permission_denied"
    return "truncated" if "end" in str(error) or "unexpected" in str(error) else "unreadable"
