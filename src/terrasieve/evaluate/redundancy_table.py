"""Redundancy table: a manifest's images, scored part by part, become one GeoParquet file.

After ``redundancy``, before its report page. A part appears under its name when it is whole, so a run that was stopped,
even killed, goes on where it was.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from terrasieve import manifest
from terrasieve.data.augment import ImageSettings
from terrasieve.data.images import Images
from terrasieve.errors import UserError
from terrasieve.evaluate.reading import CHUNK, Scored, over_images
from terrasieve.evaluate.redundancy import SCORES, ImageScorer, checked_grid
from terrasieve.files import written_aside
from terrasieve.keyed import numpy_generator
from terrasieve.train.folder import write_json

FILE, PARTS, ABOUT = "redundancy.parquet", "parts", "settings.json"
PART_ROWS = 32 * CHUNK
COPIED = (
    *("id", "uri", "window", "width", "height", "gsd_m", "lon", "lat", "geometry"),
    *("source", "split", "label", "labels"),
)
_ABOUT_KEY = b"terrasieve:redundancy"
_PART_SCHEMA = pa.schema(
    [
        ("real_patches", pa.int32()),
        *((name, pa.float32()) for name in SCORES),
        ("reason", pa.string()),
        ("unreadable", pa.bool_()),
    ]
)


def measure(
    table: pa.Table,
    images: Images,
    image: ImageSettings,
    scorer: ImageScorer,
    folder: Path,
    about: dict[str, Any],
    *,
    workers: int | None = None,
    on_images: Callable[[int, int], None] | None = None,
) -> pa.Table:
    """Score a manifest's images into ``redundancy.parquet``, going on from the parts that are there.

    Args:
        table: the manifest.
        images: its kept rows.
        image: size, and each band's mean and standard deviation.
        scorer: of the images.
        folder: to write into; held by the caller.
        about: what the scores depend on, JSON values; kept beside the parts and in the file's metadata.
        workers: see :func:`terrasieve.evaluate.reading.over_images`.
        on_images: called with images done and their total.

    Returns:
        One row per row of the manifest: the columns of ``COPIED``, ``patches`` (of the grid), ``no_data_patches``,
        ``SCORES`` (see :func:`terrasieve.evaluate.redundancy.image_scores`; null without a score), and ``reason``,
        why there is none, "" when there is one.

    Raises:
        UserError: no image could be scored, or something a user can mend.
    """
    patches = int(np.prod(checked_grid(image, scorer.settings.patch_px)))
    if (done := _finished(folder / FILE, about)) is not None:
        return done
    write_json(folder / ABOUT, about)
    starts = range(0, len(images), PART_ROWS)
    missing = [start for start in starts if not _is_whole(_part(folder, start))]
    total = len(images)
    counted = total - sum(min(PART_ROWS, total - start) for start in missing)
    chunks = [
        range(first, min(first + CHUNK, total))
        for start in missing
        for first in range(start, min(start + PART_ROWS, total), CHUNK)
    ]
    gathered: list[Scored] = []
    for scored in over_images(images, image, scorer, chunks, workers, scorer.device):
        gathered.append(scored)
        counted += len(scored.rows)
        if on_images is not None:
            on_images(counted, total)
        if scored.rows.stop % PART_ROWS == 0 or scored.rows.stop == total:
            _write_part(_part(folder, gathered[0].rows.start), gathered, patches)
            gathered = []
    scores = pa.concat_tables(pq.read_table(_part(folder, start)) for start in starts)
    joined = _joined(table, scores, patches)
    _check_any(joined)
    _write(joined, folder / FILE, about)
    shutil.rmtree(folder / PARTS)
    return joined


def stored_about(folder: Path, about: dict[str, Any]) -> dict[str, Any] | None:
    """Return what an earlier run of the same settings stored about itself, None when there was none.

    Args:
        folder: of the analysis.
        about: what is asked for now; keys that only the stored one has are not compared.

    Raises:
        UserError: the folder holds the analysis of something else.
    """
    path = folder / ABOUT
    if not path.exists():
        return None
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read {path}: {error}. Delete it, or choose another folder with -o.") from error
    for key, value in about.items():
        if stored.get(key) != value:
            raise UserError(
                f"{folder} holds an analysis with {key} = {stored.get(key)}; this one has {key} = {value}. "
                "Choose another folder with -o, or delete that one."
            )
    return stored


def means(table: pa.Table, seed: int = 0, resamples: int = 1000) -> dict[str, tuple[float, float, float]]:
    """Return each score's mean over images with its 95 % percentile bootstrap interval: name -> (mean, low, high).

    Args:
        table: rows of ``redundancy.parquet``; those without a score are left out.
        seed: keys the resamples.
        resamples: how often images are drawn with replacement.
    """
    values_NS = scores_of(table)
    count = len(values_NS)
    draws = numpy_generator(seed, "bootstrap", count)
    at_once = max(1, 2**21 // max(count, 1))
    sizes = [min(at_once, resamples - start) for start in range(0, resamples, at_once)]
    drawn_RS = np.concatenate([values_NS[draws.integers(count, size=(size, count))].mean(axis=1) for size in sizes])
    low_S, high_S = np.quantile(drawn_RS, [0.025, 0.975], axis=0)
    rows = zip(values_NS.mean(axis=0).tolist(), low_S.tolist(), high_S.tolist(), strict=True)
    return dict(zip(SCORES, rows, strict=True))


def scores_of(table: pa.Table) -> NDArray[np.float64]:
    """Return the scores of the scored rows: (N, len(SCORES))."""
    scored = table.filter(pc.equal(table["reason"], ""))
    return np.stack([scored[name].to_numpy().astype(np.float64) for name in SCORES], axis=1)


def _part(folder: Path, start: int) -> Path:
    return folder / PARTS / f"{start:09d}.parquet"


def _is_whole(path: Path) -> bool:
    """Tell whether a part needs no work; one with images that could not be read does: the mount may be back."""
    return path.exists() and not pc.any(pq.read_table(path, columns=["unreadable"])["unreadable"]).as_py()


def _write_part(path: Path, gathered: Sequence[Scored], patches: int) -> None:
    columns: dict[str, list[Any]] = {name: [] for name in _PART_SCHEMA.names}
    for row in (row for scored in gathered for row in _rows(scored, patches)):
        for name, value in row.items():
            columns[name].append(value)
    with written_aside(path) as aside:
        pq.write_table(pa.table(columns, schema=_PART_SCHEMA), aside)


def _rows(scored: Scored, patches: int) -> Iterator[dict[str, Any]]:
    nothing: dict[str, Any] = dict.fromkeys(("real_patches", *SCORES))
    place = {row: number for number, row in enumerate(scored.read)}
    values = {name: column.tolist() for name, column in (scored.values or {}).items()}
    for row in scored.rows:
        if row in scored.failed:
            yield nothing | {"reason": scored.failed[row], "unreadable": True}
            continue
        found = {name: column[place[row]] for name, column in values.items()}
        reason = ""
        if found["real_patches"] < 2:
            reason = f"no_data: {found['real_patches']} of {patches} patches are real"
        elif not np.isfinite([found[name] for name in SCORES]).all():
            reason = "not_finite: pixels or features hold NaN or infinity that is not marked as no-data"
        yield (found if not reason else nothing | {"real_patches": found["real_patches"]}) | {
            "reason": reason,
            "unreadable": False,
        }


def _joined(table: pa.Table, scores: pa.Table, patches: int) -> pa.Table:
    """Put the scores beside the manifest's columns; rows that are not kept say so."""
    keep = pc.fill_null(table["keep"], False).to_numpy(zero_copy_only=False).astype(bool)
    place = np.where(keep, np.cumsum(keep) - 1, -1)
    at = pa.array(place, mask=~keep)
    joined = table.select(list(COPIED))
    joined = joined.append_column("patches", pa.array(np.where(keep, patches, 0), pa.int32(), mask=~keep))
    real = scores["real_patches"].take(at)
    joined = joined.append_column("no_data_patches", pc.subtract(pa.scalar(patches, pa.int32()), real))
    for name in SCORES:
        joined = joined.append_column(name, scores[name].take(at))
    why = pc.binary_join_element_wise("not kept", pc.fill_null(table["reason"], ""), ": ")
    return joined.append_column("reason", pc.coalesce(scores["reason"].take(at), why))


def _check_any(joined: pa.Table) -> None:
    if pc.any(pc.equal(joined["reason"], "")).as_py():
        return
    reasons = pc.value_counts(pc.list_element(pc.split_pattern(joined["reason"], ":", max_splits=1), 0)).to_pylist()
    listed = ", ".join(f"{row['counts']:,} {row['values']}" for row in reasons)
    raise UserError(
        f"None of the {joined.num_rows:,} images could be scored: {listed}. The first: {joined['uri'][0]}: "
        f"{joined['reason'][0]}. Is the disk or the mount that holds them still there?"
    )


def _write(joined: pa.Table, path: Path, about: dict[str, Any]) -> None:
    geo = json.dumps(manifest.geo_metadata(joined["geometry"]))
    with written_aside(path) as aside:
        pq.write_table(
            joined.replace_schema_metadata({_ABOUT_KEY: json.dumps(about), b"geo": geo}), aside, compression="zstd"
        )


def _finished(path: Path, about: dict[str, Any]) -> pa.Table | None:
    if not path.exists():
        return None
    table = pq.read_table(path)
    return table if (table.schema.metadata or {}).get(_ABOUT_KEY, b"").decode() == json.dumps(about) else None
