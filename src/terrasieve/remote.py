"""Remote: files at URLs (s3://, gs://, https://, memory://, file://), through the file system that fsspec has for each.

Near the first in the import order: manifests, shards and the members of tars are read through it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO, TypeGuard, cast

from terrasieve.errors import UserError


def is_url(path: str | Path) -> TypeGuard[str]:
    """Tell whether a path is the address of something that the file system does not hold."""
    return isinstance(path, str) and "://" in path


def open_url(url: str) -> BinaryIO:
    """Open a file for reading, at its start.

    Raises:
        FileNotFoundError: there is none.
        OSError: anything else that went wrong on the way.
        UserError: no package for this kind of address is installed.
    """
    system, path = _system(url)
    try:
        return cast(BinaryIO, system.open(path, "rb"))
    except Exception as error:
        raise _plain(url, error) from error


def read_range(url: str, start: int, stop: int) -> bytes:
    """Read the bytes from ``start`` up to ``stop``, fewer where the file ends before; errors as of :func:`open_url`."""
    system, path = _system(url)
    try:
        return bytes(system.cat_file(path, start=start, end=stop))
    except Exception as error:
        raise _plain(url, error) from error


def size(url: str) -> int:
    """Return the bytes of a file; errors as of :func:`open_url`."""
    system, path = _system(url)
    try:
        return int(system.size(path) or 0)
    except Exception as error:
        raise _plain(url, error) from error


def _system(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        return cast(tuple[Any, str], fsspec.core.url_to_fs(url))
    except (ImportError, ValueError) as error:
        raise UserError(f"{url} cannot be read: {error}") from error


def _plain(url: str, error: Exception) -> OSError:
    """Every file system has errors of its own; what is not an OSError already becomes one, and keeps its words."""
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"{url}: there is no such file")
    return OSError(f"{url}: {error or type(error).__name__}")
