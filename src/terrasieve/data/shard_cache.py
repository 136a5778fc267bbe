"""Shard cache: shards at URLs, fetched whole once into a bounded folder that all workers of a machine share.

Between ``images`` and the network. An image is never waited for longer than it takes to read its own bytes: until its
shard is here, which a thread sees to, it is read by its range. What is fetched is checked against the shards' index
(blake2b) before it counts, and appears under its name whole; each image read is checked by its own checksum (crc32).
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from terrasieve import remote
from terrasieve.errors import UserError
from terrasieve.files import written_aside
from terrasieve.imagery import members
from terrasieve.imagery.unreadable import UnreadableImage

FETCHES = 2  # at a time, per process
AGAIN_S = 30.0  # after a fetch that failed
STALE_S = 3600.0  # age of a partial file that nobody is writing any more
_CHUNK = 4_000_000


def default_folder() -> Path:
    """Return the user's folder for shards."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "terrasieve" / "shards"


class ShardCache:
    """Shards in a local folder, named by their checksum; the one used longest ago goes first.

    Attributes:
        folder: shared by processes.
        limit_bytes: that the folder may hold, give or take the shards being fetched.
        strict: whether an image of a damaged shard is refused; else it is read, and its own checksum decides.
        damaged: what is wrong with shards that came with another checksum than the index says, by URL.
    """

    def __init__(self, folder: Path, limit_bytes: int, strict: bool = False) -> None:
        """Open the folder, or make it.

        Raises:
            UserError: if it cannot be made.
        """
        self.folder, self.limit_bytes, self.strict = folder, limit_bytes, strict
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for partial in folder.glob(".*.partial"):
                if time.time() - partial.stat().st_mtime > STALE_S:
                    partial.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"loader.cache: {folder} cannot be used ({error.strerror}); name another folder."
            ) from error
        self._start()

    def _start(self) -> None:
        self.damaged: dict[str, str] = {}
        self._indexes: dict[str, dict[str, tuple[int, str]]] = {}
        self._used: dict[str, float] = {}
        self._next: dict[str, float] = {}
        self._slots = threading.BoundedSemaphore(FETCHES)
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "limit_bytes": self.limit_bytes, "strict": self.strict}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.folder, self.limit_bytes, self.strict = state["folder"], state["limit_bytes"], state["strict"]
        self._start()

    def size_of(self, archives: Sequence[str]) -> dict[str, int]:
        """Return the bytes of shards by URL, where their index says."""
        found = {archive: self._known(archive) for archive in archives}
        return {archive: known[0] for archive, known in found.items() if known is not None}

    def near(self, uri: str) -> str:
        """Return an image's uri in its shard's copy here, or as it is while there is none; then one is fetched.

        Args:
            uri: any.

        Raises:
            UnreadableImage: "damaged_shard", if ``strict``.
        """
        member = members.parse(uri)
        if member is None or not remote.is_url(member.archive):
            return uri
        if self._process != os.getpid():
            self._start()  # threads and locks do not survive a fork
        path, now = self._path(member.archive), time.monotonic()
        if path is not None and path.exists():
            if now - self._used.get(path.name, -AGAIN_S) >= AGAIN_S:
                self._used[path.name] = now
                with suppress(OSError):
                    os.utime(path)
            return member._replace(archive=str(path)).uri
        if member.archive in self.damaged:
            if self.strict:
                raise UnreadableImage(uri, "damaged_shard", self.damaged[member.archive])
            return uri
        if path is not None and now >= self._next.get(member.archive, 0):
            self._next[member.archive] = float("inf")
            threading.Thread(target=self._fetch, args=(member.archive, path), daemon=True).start()
        return uri

    def forget(self, uri: str) -> None:
        """Remove the copy that holds an image, which turned out damaged; the shard is fetched again."""
        member = members.parse(uri)
        if member is not None:
            Path(member.archive).unlink(missing_ok=True)

    def _known(self, archive: str) -> tuple[int, str] | None:
        """Return a shard's bytes and blake2b as the index beside it says; None where there is no index."""
        folder, _, name = archive.rpartition("/")
        if folder not in self._indexes:
            try:
                with remote.open_url(f"{folder}/index.parquet") as stream:
                    table = pq.read_table(io.BytesIO(stream.read()), columns=["shard", "bytes", "blake2b"])
                self._indexes[folder] = {row["shard"]: (row["bytes"], row["blake2b"]) for row in table.to_pylist()}
            except (OSError, pa.ArrowException):
                self._indexes[folder] = {}  # images are read by their range, and checked by their own checksums
        return self._indexes[folder].get(name)

    def _path(self, archive: str) -> Path | None:
        known = self._known(archive)
        return None if known is None or known[0] > self.limit_bytes else self.folder / f"{known[1]}.tar"

    def _fetch(self, archive: str, path: Path) -> None:
        again = time.monotonic() + AGAIN_S
        try:
            with self._slots, path.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # another process that fetches it is an OSError here
                if not path.exists():
                    self._copy(archive, path)
        except (OSError, UserError):
            pass  # the images are read by their range, as they were; a full disk mends itself or does not
        finally:
            self._next[archive] = again

    def _copy(self, archive: str, path: Path) -> None:
        n_bytes, expected = self._indexes[archive.rpartition("/")[0]][archive.rpartition("/")[2]]
        self._make_room(n_bytes)
        digest, size = hashlib.blake2b(digest_size=16), 0
        with written_aside(path) as aside:
            with remote.open_url(archive) as stream, aside.open("wb") as file:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
                    size += file.write(chunk)
            if digest.hexdigest() != expected:
                what = "is cut off" if size < n_bytes else "was altered"
                self.damaged[archive] = f"{archive} {what}: {size:,} bytes with blake2b {digest.hexdigest()}, " + (
                    f"where its index has {n_bytes:,} and {expected}"
                )
                raise OSError(self.damaged[archive])

    def _make_room(self, n_bytes: int) -> None:
        held = []
        for path in self.folder.glob("*.tar"):
            with suppress(FileNotFoundError):
                stat = path.stat()
                held.append((stat.st_mtime, stat.st_size, path))
        excess = sum(size for _, size, _ in held) + n_bytes - self.limit_bytes
        for _, size, path in sorted(held):
            if excess <= 0:
                return
            path.unlink(missing_ok=True)  # whoever has it open reads on
            path.with_suffix(".lock").unlink(missing_ok=True)
            excess -= size
