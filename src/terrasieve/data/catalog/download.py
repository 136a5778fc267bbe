"""Download: an archive of a data set, with resume and its published checksum; unpacking is the user's.

Called by ``terrasieve datasets NAME --download``. Reads by range through fsspec, so an interrupted download goes on.
Where there is no plain address, TorchGeo's class of the data set fetches and unpacks it; its layouts are read here
anyway, so nothing else of TorchGeo is needed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from terrasieve import remote
from terrasieve.data.catalog.copy import md5
from terrasieve.data.catalog.entry import Archive, Entry
from terrasieve.errors import UserError

BLOCK = 2**23  # bytes per request


def fetch(archive: Archive, folder: Path, tick: Callable[[int, int], None] | None = None) -> str:
    """Download an archive into a folder; what is there already, whole or in part, is not fetched again.

    Args:
        archive: with an address.
        folder: is made.
        tick: called with the bytes that are here and their total.

    Returns:
        What was done, in one line.

    Raises:
        UserError: the address cannot be reached, the disk is full, or the checksum is another one.
    """
    target, part = folder / archive.name, folder / f"{archive.name}.part"
    if target.is_file():
        return f"{target} is here already"
    try:
        size = remote.size(archive.url)
        folder.mkdir(parents=True, exist_ok=True)
        done = part.stat().st_size if part.is_file() else 0
        with part.open("ab") as file:
            while done < size:
                block = remote.read_range(archive.url, done, min(done + BLOCK, size))
                if not block:
                    raise OSError(f"it ended after {done:,} of {size:,} bytes")
                file.write(block)
                done += len(block)
                if tick is not None:
                    tick(done, size)
    except (OSError, UserError) as error:
        # An address that cannot be reached and one that is not there any more are the same to fsspec.
        what = "nothing answers there" if isinstance(error, FileNotFoundError) else str(error)
        raise UserError(
            f"Cannot fetch {archive.name}: {what}. Is the network closed? Fetch {archive.url} where it is open and "
            f"put it into {folder}; the same command goes on from what is here."
        ) from error
    found = md5(part) if archive.md5 else ""
    if found != archive.md5:
        part.unlink()
        raise UserError(
            f"{archive.name} came with the checksum {found} instead of {archive.md5} and was removed; fetch it again, "
            "or tell us if its makers have replaced it."
        )
    part.replace(target)
    return f"{target}: {size:,} bytes" + (", checksum right" if archive.md5 else "")


def through_torchgeo(entry: Entry, folder: Path) -> str:
    """Let TorchGeo fetch and unpack a data set; return what was done, in one line.

    Both of its layouts are meant: data sets as attributes of ``torchgeo.datasets``, up to 0.8 and from 0.10 on.

    Raises:
        UserError: TorchGeo is not installed or lacks the class, or its download fails.
    """
    name = entry.torchgeo.partition(" ")[0]
    try:
        found = getattr(importlib.import_module("torchgeo.datasets"), name)
    except ImportError as error:
        raise UserError(
            f"{entry.title} has no plain address, but TorchGeo fetches it: pip install 'terrasieve[torchgeo]' "
            f"({error}). Or obtain it by hand: {entry.page}"
        ) from error
    except AttributeError as error:
        raise UserError(f"This version of TorchGeo has no {name}; obtain {entry.title} at {entry.page}.") from error
    try:
        found(root=folder, download=True, checksum=True)
    except Exception as error:  # TorchGeo's classes raise whatever their network code does
        raise UserError(
            f"TorchGeo could not fetch {entry.title}: {type(error).__name__}: {error}. Is the network closed? Obtain "
            f"it at {entry.page} where it is open, and put it into {folder}."
        ) from error
    return f"{folder}: fetched by TorchGeo's {name}"
