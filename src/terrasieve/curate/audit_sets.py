"""Audit sets: the manifests that an audit compares, from manifests, folders of images, or the splits of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc

from terrasieve import manifest
from terrasieve.curate.overlap import Bar
from terrasieve.curate.scan import scan
from terrasieve.curate.step import drop
from terrasieve.errors import UserError

TRAIN = "train"
_PLAIN = ("images", "image", "data")  # names of folders that name no data set


class Sets(NamedTuple):
    """What is compared.

    Attributes:
        name: of the pretraining set.
        source: its manifest.
        pretrain: the manifest whose kept rows are compared, of the same rows as ``source``.
        evaluations: manifests by name.
    """

    name: str
    source: Path
    pretrain: Path
    evaluations: dict[str, Path]


def gather(pretrain: str, evaluations: list[str], folder: Path, *, splits: bool, csv: Path | None, bar: Bar) -> Sets:
    """Find the sets of an audit.

    Args:
        pretrain: path of a manifest, or ``folder:PATH``; ``NAME=`` before it names it.
        evaluations: likewise.
        folder: where manifests of folders and splits are written.
        splits: compare the training images of ``pretrain`` with those of its other splits; no ``evaluations`` then.
        csv: says which split the images of folders belong to.
        bar: shows progress.

    Raises:
        UserError: nothing to compare, no such file or folder, no splits.
    """
    if splits == bool(evaluations):
        raise UserError(
            "--splits compares the splits of one data set; leave out the other sets."
            if splits
            else "There is nothing to compare with: name evaluation sets (FILE.parquet, folder:PATH) or give --splits."
        )
    name, source = _manifest(pretrain, folder, csv, bar)
    if splits:
        parts = _splits(source, folder)
        if TRAIN not in parts or len(parts) < 2:
            raise UserError(
                f"{pretrain} has the splits {', '.join(parts) or '(none)'}; comparing needs train and another one. "
                "Give a CSV with the columns path and split by --csv."
            )
        return Sets(name, source, parts.pop(TRAIN), parts)
    found: dict[str, Path] = {}
    for spec in evaluations:
        called, path = _manifest(spec, folder, csv, bar)
        twins = [key for key in found if key == called or key.startswith(f"{called}-")]
        found[f"{called}-{len(twins) + 1}" if twins else called] = path
    return Sets(name, source, source, found)


def _manifest(spec: str, folder: Path, csv: Path | None, bar: Bar) -> tuple[str, Path]:
    name, equals, rest = spec.partition("=")
    if not equals or "/" in name or ":" in name:
        name, rest = "", spec
    prefix, colon, where = rest.partition(":")
    if prefix == "manifest" and colon:
        prefix, rest = "", where
    if prefix != "folder" or not colon:
        path = Path(rest)
        manifest.read(path, ["keep"])
        return name or path.stem, path
    place = Path(where).resolve()
    name = name or (place.parent.name if place.name.lower() in _PLAIN else place.name)
    path = folder / f"{name}.parquet"
    with bar(f"index {name}", "files") as tick:
        result = scan(where, csv=csv, on_file=tick)
    manifest.write(result.table, path)
    return name, path


def _splits(source: Path, folder: Path) -> dict[str, Path]:
    """Write a manifest of the same rows for each split, of which only the split's rows are kept."""
    table = manifest.read(source)
    names = sorted(name for name in pc.unique(table.filter(table["keep"])["split"]).to_pylist() if name)
    written = {}
    for name in names:
        others = np.flatnonzero(~pc.fill_null(pc.equal(table["split"], name), False).to_numpy(zero_copy_only=False))
        written[name] = folder / f"{source.stem}.{name}.parquet"
        manifest.write(drop(table, others, ["split: another one"] * len(others)), written[name])
    return written
