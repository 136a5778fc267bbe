"""Subsets of a manifest: what ``terrasieve subset`` does, from the manifest to smaller ones and a page.

After ``assess``, whose runs give embeddings, and ``curate.subset``, which ranks; before the command line.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from terrasieve import manifest as manifests
from terrasieve.curate import subset
from terrasieve.curate.engine import Local
from terrasieve.curate.step import Tick
from terrasieve.curate.subset import SubsetSettings
from terrasieve.errors import UserError
from terrasieve.files import written_aside
from terrasieve.report.subset_page import Ranked, write_subset_report

THUMB = "thumbnails of 16 x 16 grey values"


class Written(NamedTuple):
    """A subset: its share, its manifest and the images it keeps."""

    share: float
    path: Path
    kept: int


def write_subsets(
    manifest: Path,
    output: Path,
    shares: Sequence[float],
    settings: SubsetSettings,
    *,
    embeddings: Path | None = None,
    run: Path | None = None,
    workers: int | None = None,
    tick: Tick,
) -> tuple[list[Written], Path]:
    """Rank a manifest's kept images and write a manifest for each share; a smaller one lies within a larger one.

    Args:
        manifest: of the images.
        output: manifest to write; of several shares each has its per cent in its name.
        shares: in (0, 1].
        settings: how to rank.
        embeddings: .npy of (kept rows or all rows, D), in the manifest's order.
        run: folder of a run whose encoder gives them; without either, thumbnails are compared.
        workers: processes that read; None = one per core.
        tick: told images done and their number.

    Returns:
        What was written, and the page.

    Raises:
        UserError: for anything that a user can mend.
    """
    shares = sorted(set(shares))
    if not shares or not all(0 < share <= 1 for share in shares):
        raise UserError(f"--share: {', '.join(f'{s:g}' for s in shares)} is not within (0, 1], e.g. 0.25,0.5.")
    if embeddings and run:
        raise UserError("--embeddings and --run are both given; choose one.")
    columns = ["id", "uri", "window", "bands", "dtype", "source", "label", "lon", "lat", "keep"]
    table = manifests.read(manifest, columns if run is None else None)
    kept = table.filter(pc.fill_null(table["keep"], False))
    values = _embeddings(embeddings, run, table, kept, workers, tick)
    from terrasieve.evaluate import richness

    found = richness.measure(_places(kept), Local(workers), tick)
    readable = np.isfinite(found.hog)
    compared = str(embeddings or run or THUMB)
    values = _thumbs(found.thumbs) if values is None else values
    energy = found.energy(_kinds(kept))
    scores = {"hog": energy, "entropy": found.entropy, "random": np.zeros(len(kept), np.float32)}
    if settings.by == "density":
        scores["density"] = -subset.density(values, settings.neighbours, settings.seed)
    score = np.where(readable, scores[settings.by], np.nan)
    ids = np.array([int(text, 16) for text in kept["id"].to_pylist()], np.uint64)
    rank = np.where(readable, subset.ranks(score, ids, _levels(kept, values, settings), settings.seed), -1)
    written = _write(manifest, output, shares, rank, settings)
    shown = Ranked(kept, rank, score, energy, found.entropy)
    page = write_subset_report(output.with_suffix(".html"), shown, shares, settings, compared)
    about: dict[str, Any] = settings.model_dump(mode="json") | {"compared": compared, "shares": list(shares)}
    with written_aside(output.with_suffix(".json")) as aside:
        aside.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return written, page


def _places(kept: pa.Table) -> list[Any]:
    return list(zip(*(kept[name].to_pylist() for name in ("uri", "window", "bands")), strict=True))


def _embeddings(
    path: Path | None, run: Path | None, table: pa.Table, kept: pa.Table, workers: int | None, tick: Tick
) -> np.ndarray | None:
    if run is not None:
        from terrasieve import assess

        return assess.embed_run(run, table, workers=Local(workers).workers, on_images=tick)
    if path is None:
        return None
    try:
        values: np.ndarray = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read embeddings from {path}: {error}. Give a .npy file of numbers, N x D.") from error
    if values.ndim != 2 or values.dtype.kind != "f" or len(values) not in (len(table), len(kept)):
        raise UserError(
            f"{path} holds {values.dtype} of shape {values.shape}; wanted: floats, a row for each of the {len(kept):,} "
            f"kept (or all {len(table):,}) rows of the manifest, in its order."
        )
    return values if len(values) == len(kept) else values[np.flatnonzero(table["keep"].to_numpy())]


def _thumbs(thumbs: np.ndarray) -> np.ndarray:
    """Return (n, 256) float32: means over 2 x 2 pixels, the mean of the image taken out."""
    means = thumbs.reshape(-1, 16, 2, 16, 2).mean(axis=(2, 4), dtype=np.float32).reshape(len(thumbs), -1)
    return np.asarray(means - means.mean(axis=1, keepdims=True))


def _kinds(kept: pa.Table) -> np.ndarray:
    source, dtype = (_numbers(kept[name]) for name in ("source", "dtype"))
    return np.asarray(source * 1000 + dtype)


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    codes = pc.rank(pc.fill_null(column, ""), tiebreaker="dense").to_numpy()
    return np.asarray(codes.astype(np.int64))


def _levels(kept: pa.Table, values: np.ndarray, settings: SubsetSettings) -> subset.Levels:
    if settings.balance == "clusters":
        return subset.clusters(values, settings.clusters, settings.seed)[0]
    if settings.balance == "geography":
        lon, lat = (pc.fill_null(kept[name], np.nan).to_numpy() for name in ("lon", "lat"))
        return subset.cells(lon, lat, _numbers(kept["source"]))
    return []


def _write(
    manifest: Path, output: Path, shares: Sequence[float], rank: np.ndarray, settings: SubsetSettings
) -> list[Written]:
    how = settings.by if settings.balance == "none" else f"{settings.by}, spread over {settings.balance}"
    written = []
    for share in shares:
        path = output if len(shares) == 1 else output.with_name(f"{output.stem}_{100 * share:g}{output.suffix}")
        result = subset.write(manifest, path, rank, share, how)
        written.append(Written(share, path, result.kept))
    return written
