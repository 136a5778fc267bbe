"""Files: written whole or not at all, in folders that one process holds at a time. Used by everything that writes."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from terrasieve.errors import UserError


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; on success flush it to disk and rename it, on failure remove it.

    Raises:
        UserError: if the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield aside
        mask = os.umask(0)
        os.umask(mask)
        aside.chmod(0o666 & ~mask)  # some writers create private files
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except (OSError, RuntimeError) as error:
        # torch's zip writer reports a failed write as RuntimeError without a cause that names the disk
        number = getattr(error, "errno", None)
        words = f"{error} {error.__context__}"
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "StreamWriter" in words or "iostream" in words:
            raise UserError(
                f"Cannot write {path}: {str(error).splitlines()[0]}. Is the disk full or the quota used up? Nothing "
                "was left under that name; free some space, then run the command again or resume it."
            ) from error
        raise
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def held(folder: Path, option: str = "--folder") -> Iterator[None]:
    """Hold a folder, so that two processes never write into one.

    Args:
        folder: is made.
        option: of the command line that names it, for the messages.

    Raises:
        UserError: if another process holds it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a+")
    except OSError as error:
        raise UserError(
            f"Cannot write into the folder {folder}: {error.strerror}. Choose another with {option}."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            raise UserError(
                f"The folder {folder} is in use by process {lock.read().strip() or '?'}. "
                f"Wait for it, stop it, or choose another folder with {option}."
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        for partial in [*folder.glob(".*.partial"), *folder.glob("*/.*.partial")]:
            partial.unlink(missing_ok=True)  # left by a killed run
        yield
