"""Members: images inside tars (WebDataset shards), each addressed by a uri that says where its bytes lie.

Such a uri is ``{tar path or URL}#name={quoted}&offset={bytes}&size={bytes}&crc32={8 hex digits}``, the checksum being
optional; ``headers`` and ``raster`` read it as they read a file. Written by ``curate.scan`` for tars that are sources
and by ``curate.shards`` for those that it makes. A member is read without a look at the rest of its tar, and a tar that
was cut off or altered is noticed by the member's length and checksum.
"""

from __future__ import annotations

import io
import os
import re
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import quote, unquote

from terrasieve import remote
from terrasieve.imagery.unreadable import UnreadableImage

WHOLE_BYTES = 256_000_000  # larger members are read in part, and their checksum is not looked at
_FORM = re.compile(
    r"(?P<archive>.+)#name=(?P<name>[^&#]+)&offset=(?P<offset>\d+)&size=(?P<size>\d+)(?:&crc32=(?P<crc32>[0-9a-f]{8}))?",
    re.DOTALL,
)


class Member(NamedTuple):
    """A file inside a tar.

    Attributes:
        archive: path or URL of the tar.
        name: of the file, as the tar has it.
        offset: of its first byte in the tar.
        size: in bytes.
        crc32: checksum of its bytes, where it is known.
    """

    archive: str
    name: str
    offset: int
    size: int
    crc32: int | None = None

    @property
    def uri(self) -> str:
        """Return the member's address."""
        return member_uri(self.archive, self.name, self.offset, self.size, self.crc32)


def member_uri(archive: str, name: str, offset: int, size: int, crc32: int | None = None) -> str:
    """Return the address of a file inside a tar; see :class:`Member` for the arguments."""
    quoted = quote(name, safe="/", errors="surrogateescape")
    checksum = "" if crc32 is None else f"&crc32={crc32:08x}"
    return f"{archive}#name={quoted}&offset={offset}&size={size}{checksum}"


def parse(uri: str) -> Member | None:
    """Take the address of a member apart; None for any other uri."""
    if "#name=" not in uri:
        return None
    found = _FORM.fullmatch(uri)
    if found is None:
        return None
    archive, name, offset, size, crc32 = found.groups()
    name = unquote(name, errors="surrogateescape")
    return Member(archive, name, int(offset), int(size), None if crc32 is None else int(crc32, 16))


def read_bytes(member: Member) -> bytes:
    """Read a member's bytes from a local tar, or by their range from a URL.

    Raises:
        UnreadableImage: "missing" or "permission_denied" (of the tar), "damaged_shard" (it ends before the member does,
            or the member has another checksum), "unreadable" (any other failure).
    """
    try:
        if remote.is_url(member.archive):
            data = remote.read_range(member.archive, member.offset, member.offset + member.size)
        else:
            with Path(member.archive).open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), member.size, member.offset)
    except OSError as error:
        raise _refused(member, error) from error
    if len(data) < member.size:
        raise UnreadableImage(
            member.uri,
            "damaged_shard",
            f"{member.archive} is cut off: of {member.name} it holds {len(data):,} of {member.size:,} bytes",
        )
    if member.crc32 is not None and zlib.crc32(data) != member.crc32:
        detail = f"{member.archive} was altered: {member.name} has the checksum {zlib.crc32(data):08x}"
        raise UnreadableImage(member.uri, "damaged_shard", f"{detail} instead of {member.crc32:08x}")
    return data


def open_member(member: Member) -> BinaryIO:
    """Open a member for reading; errors as of :func:`read_bytes`, which reads all but members too large for memory."""
    if member.size <= WHOLE_BYTES or remote.is_url(member.archive):
        return io.BytesIO(read_bytes(member))
    try:
        return io.BufferedReader(_Part(member))
    except OSError as error:
        raise _refused(member, error) from error


def gdal_path(member: Member) -> str:
    """Return the name under which GDAL reads a member of a local tar, block by block."""
    return f"/vsisubfile/{member.offset}_{member.size},{member.archive}"


def _refused(member: Member, error: OSError) -> UnreadableImage:
    if isinstance(error, FileNotFoundError):
        return UnreadableImage(member.uri, "missing", f"there is no {member.archive}")
    if isinstance(error, PermissionError):
        return UnreadableImage(member.uri, "permission_denied", f"this user may not read {member.archive}")
    return UnreadableImage(member.uri, "unreadable", error.strerror or str(error))


class _Part(io.RawIOBase):
    """A member of a local tar as a file of its own."""

    def __init__(self, member: Member) -> None:
        self._file = Path(member.archive).open("rb", buffering=0)  # noqa: SIM115 - closed with this object
        self._first, self._size, self._at = member.offset, member.size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence] + offset
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = os.pread(self._file.fileno(), max(0, min(len(buffer), self._size - self._at)), self._first + self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
