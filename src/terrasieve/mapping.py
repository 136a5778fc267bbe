"""Map of a run: what ``terrasieve map`` does, from a run and a manifest to a page.

After ``assess``, whose encoders give the features, and before the command line.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from terrasieve import assess, keyed, opened
from terrasieve import manifest as manifests
from terrasieve.errors import UserError
from terrasieve.evaluate import geography
from terrasieve.recipe import Recipe
from terrasieve.report.geography_page import Located, write_geography_page

MOST = 50_000


def write_map(
    run: Path,
    manifest: Path,
    output: Path,
    *,
    max_km: float = geography.MAX_KM,
    most: int = MOST,
    seed: int = 0,
    workers: int = 1,
    on_images: Callable[[int, int], None] | None = None,
) -> Located:
    """Show on one page where a manifest's images lie and what a run's encoder makes of them.

    Args:
        run: folder of the run.
        manifest: of the images; its kept rows with coordinates are shown, and those whose split is test are judged.
        output: page to write.
        max_km: farther pairs are not counted.
        most: images; of more so many are drawn by key.
        seed: of the draws and of the bootstrap.
        workers: reading processes.
        on_images: called with images done and their total.

    Raises:
        UserError: no coordinates, or what :func:`terrasieve.opened.load_run` says.
    """
    if output.suffix != ".html":
        raise UserError(f"-o {output}: the map is a page; give a name that ends in .html.")
    table = manifests.read(manifest)
    kept = table.filter(pc.fill_null(table["keep"], False))
    lon, lat = (np.asarray(pc.fill_null(kept[name], np.nan).to_numpy(), np.float64) for name in ("lon", "lat"))
    rows = np.flatnonzero(np.isfinite(lon) & np.isfinite(lat))
    if not len(rows):
        raise UserError(
            f"{manifest}: none of the {len(kept):,} kept images has coordinates. Index georeferenced files, or give "
            "them with terrasieve index --csv (path, lon, lat)."
        )
    notes = [f"{len(kept) - len(rows):,} images without coordinates are not shown."] if len(rows) < len(kept) else []
    if len(rows) > most:
        notes.append(f"{most:,} of {len(rows):,} images, drawn by key.")
        rows = np.sort(keyed.numpy_generator(seed, "map", len(rows)).permutation(rows)[:most])
    chosen = kept.take(pa.array(rows))
    features = assess.features_beside(run, chosen, workers=workers, on_images=on_images)
    test = np.flatnonzero(pc.fill_null(pc.equal(chosen["split"], "test"), False).to_numpy())
    judged = test if len(test) else np.arange(len(rows))
    notes += _seen(run, chosen["id"].take(pa.array(test)))
    lon, lat = lon[rows], lat[rows]
    of_judged = {name: values[torch.from_numpy(judged)] for name, values in features.items()}
    place = (lon[judged], lat[judged], max_km)
    falling = {name: geography.similarity_by_distance(values, *place, seed=seed) for name, values in of_judged.items()}
    located = Located(
        features,
        lon,
        lat,
        geography.correlations(of_judged, *place, seed=seed),
        {name: one for name, one in falling.items() if one is not None},
        len(judged),
        len(test) > 0,
        max_km,
        notes,
    )
    write_geography_page(output, run.resolve().name, manifest.name, located)
    return located


def _seen(run: Path, test: pa.ChunkedArray) -> list[str]:
    """Say how many test images the run was trained on; nothing where its manifest is gone."""
    settings, _ = opened.load_run(run)
    try:
        table = manifests.read(settings.data, ["id", "keep"]) if isinstance(settings, Recipe) else None
    except UserError:
        return []
    if table is None:
        return []
    trained = table.filter(pc.fill_null(table["keep"], False))["id"]
    count = pc.sum(pc.is_in(test, trained.combine_chunks())).as_py() or 0
    return [f"{count:,} of {len(test):,} test images are among those of training."] if count else []
