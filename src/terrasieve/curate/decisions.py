"""Decisions: what a person said of pairs in review, a JSON line per key pressed, appended durably.

Written by the review page's server, read by it and by ``verify`` on the next run. Several processes may append at a
time; a process killed while it wrote leaves at most half a line at the end, which readers ignore and the next writer
removes, since nobody was told that it was kept.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from terrasieve.errors import UserError

Decision = Literal["left", "right", "both", "undo"]  # keep a, keep b, keep both, forget what was said before
DECISIONS: tuple[str, ...] = get_args(Decision)
Said = tuple[str, str, str]  # id_a, id_b, decision


def append(path: Path, id_a: str, id_b: str, decision: Decision, tab: str) -> None:
    """Append a decision; when this returns, it is on the disk.

    Args:
        path: of the file; made if need be.
        id_a: as in the table of pairs.
        id_b: likewise.
        decision: "left" keeps a, "right" keeps b.
        tab: name of the browser tab, for the record.

    Raises:
        UserError: the file cannot be written to.
    """
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = json.dumps({"id_a": id_a, "id_b": id_b, "decision": decision, "time": now, "tab": tab}) + "\n"
    try:
        new = not path.exists()
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            _mend(file)
            size = os.fstat(file).st_size
            _write(file, line.encode(), size)
            os.fsync(file)
        finally:
            os.close(file)  # and with it the lock
        if new:
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}. The decision was not kept.") from error


def read(path: Path) -> dict[tuple[str, str], str]:
    """Return what was last said of each pair, by (id_a, id_b); what was undone is left out.

    Raises:
        UserError: a line that is no decision, other than a cut one at the end.
    """
    last: dict[tuple[str, str], str] = {}
    for id_a, id_b, decision in read_from(path, 0)[0]:
        last.pop((id_a, id_b), None)
        if decision != "undo":
            last[id_a, id_b] = decision
    return last


def read_from(path: Path, start: int) -> tuple[list[Said], int]:
    """Return what was said from byte ``start`` on, and the byte to go on from the next time.

    Raises:
        UserError: as ``read``.
    """
    try:
        with path.open("rb") as file:
            file.seek(start)
            content = file.read()
    except FileNotFoundError:
        return [], 0
    said, at = [], start
    for line in content.splitlines(keepends=True):
        found = _parsed(line)
        if found is None:
            if not line.endswith(b"\n"):
                break
            if line.strip():
                raise UserError(
                    f"{path}, byte {at}: {line[:80]!r} is no decision of a review. Remove that line, or the file."
                )
        else:
            said.append(found)
        at += len(line)
    return said, at


def _parsed(line: bytes) -> Said | None:
    try:
        entry = json.loads(line)
        said = entry["id_a"], entry["id_b"], entry["decision"]
    except (ValueError, KeyError, TypeError):
        return None
    return said if all(isinstance(part, str) for part in said) and said[2] in DECISIONS else None


def _mend(file: int) -> None:
    """Finish or remove a last line without an end."""
    size = os.fstat(file).st_size
    tail = os.pread(file, 65_536, max(0, size - 65_536))
    if not tail or tail.endswith(b"\n"):
        return
    line = tail[tail.rfind(b"\n") + 1 :]
    if _parsed(line) is None:
        os.ftruncate(file, size - len(line))
    else:
        os.write(file, b"\n")


def _write(file: int, line: bytes, size: int) -> None:
    """Write all of a line or, should the disk be full, nothing of it."""
    if os.write(file, line) < len(line):
        os.ftruncate(file, size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
