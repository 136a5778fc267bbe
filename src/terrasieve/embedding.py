"""Embedding: what ``terrasieve embed`` does, from an encoder and images to vectors with their places.

After ``opened``, which gives any encoder; before the command line. A manifest gives a vector per image; a scene a map
of features (``scenes.blend``), as a COG of one cell per patch or as a table of tiles, each the mean of its patches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow.compute as pc
import shapely
import torch
from numpy.typing import NDArray
from torch import Tensor

from terrasieve import manifest, opened
from terrasieve.batch import Batch
from terrasieve.data import images as imagery
from terrasieve.data.augment import ImageSettings
from terrasieve.errors import UserError
from terrasieve.evaluate.patches import feature_map
from terrasieve.evaluate.reading import chunked, over_images
from terrasieve.files import held
from terrasieve.imagery import geo
from terrasieve.nn.backbones import AnyEncoder
from terrasieve.opened import Opened, Wanted
from terrasieve.scenes import cog, table
from terrasieve.scenes.blend import Rows, blended
from terrasieve.scenes.preview import write_preview
from terrasieve.scenes.scene import Scene, open_scene
from terrasieve.scenes.store import RowStore, folder_beside
from terrasieve.scenes.windows import Tiling, tiling

Preview = Literal["pca", "kmeans"]
Progress = Callable[[int, int], None]


class Embedded(NamedTuple):
    """What was written.

    Attributes:
        paths: the file of vectors, and the preview if one was asked for.
        notes: what a person should know.
        failed: images that could not be read: (uri, reason).
    """

    paths: list[Path]
    notes: list[str]
    failed: list[tuple[str, str]]


class MeanFeatures:
    """One vector per image of a batch, the mean patch token; a class, since reading processes take it along."""

    def __init__(self, encoder: AnyEncoder) -> None:
        self.encoder = encoder

    def __call__(self, batch: Batch) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = self.encoder.features(batch.image).float().cpu().numpy()
        return vectors


def embed_manifest(
    spec: str | Path,
    source: Path,
    out: Path,
    *,
    wanted: Wanted = Wanted(),
    workers: int = 1,
    on_images: Progress | None = None,
) -> Embedded:
    """Write a vector per kept image of a manifest; images that cannot be read are left out and returned.

    Args:
        spec: of the encoder, see :func:`terrasieve.opened.open_encoder`.
        source: manifest.
        out: GeoParquet to write, see ``scenes.table``.
        wanted: of an encoder that does not say it itself.
        workers: reading processes, which compute, too, unless there is an accelerator.
        on_images: called with images done and their total.

    Raises:
        UserError: for anything that a user can mend.
    """
    cog.check_target(out, (".parquet", ".geoparquet"))
    bands = opened.bands_of(spec, wanted)
    rows = manifest.read(source)
    kept = rows.filter(pc.fill_null(rows["keep"], False))
    images = imagery.from_table(rows, bands)
    made = opened.open_encoder(spec, images, wanted)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    score, failed = MeanFeatures(made.encoder.to(device)), []
    about = {**_about(made, spec), "made_of": str(source)}
    with table.writing(out, made.encoder.width, about) as writer:
        for done in over_images(images, made.image, score, chunked(len(images)), workers, device):
            failed += [(images.uris[row], reason) for row, reason in done.failed.items()]
            if done.read:
                writer.write(kept.take(done.read), done.values)
            if on_images:
                on_images(done.rows.stop, len(images))
        if not writer.rows:
            raise UserError(f"{source}: none of {len(images):,} images can be read; the first says: {failed[0][1]}")
    return Embedded([out], _notes(made), failed)


def embed_scene(
    spec: str | Path,
    source: str | Path,
    out: Path,
    *,
    window: int | None = None,
    overlap: float = 0.5,
    cell: int | None = None,
    wanted: Wanted = Wanted(),
    preview: Preview | None = None,
    clusters: int = 8,
    batch_size: int = 16,
    on_windows: Progress | None = None,
) -> Embedded:
    """Write the map of features of a whole scene; an interrupted one goes on with the rows that are missing.

    Args:
        spec: of the encoder, see :func:`terrasieve.opened.open_encoder`.
        source: raster.
        out: ``.tif``, a COG of a band per feature, or ``.parquet``, a row per tile.
        window: side in pixels of the scene that the encoder sees at once; None = the size that it was trained with.
        overlap: share of a window's side, in [0, 1).
        cell: patches a side of a cell of the COG (None = 1), or of a tile (None = a window's).
        wanted: ``bands`` of the scene, which stand for a run's or an export's own; the rest is of other encoders.
        preview: also draw the scene beside its features as colours.
        clusters: of "kmeans".
        batch_size: windows at a time.
        on_windows: called with windows done and their total.

    Raises:
        UserError: for anything that a user can mend.
    """
    cog.check_target(out, (".tif", ".tiff", ".parquet", ".geoparquet"))
    tiles = out.suffix.lower() in (".parquet", ".geoparquet")
    scene = open_scene(source, opened.bands_of(spec, wanted._replace(bands=None)), wanted.bands)
    made = opened.open_encoder(spec, scene.images(), wanted)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = made.encoder.to(device)
    blank = torch.zeros(1, len(scene.bands), *made.image.shape_px, device=device)
    mapped, notes = _mapped(encoder, blank)
    plan = _plan(scene, made.image, mapped(blank).shape[-2:], window, overlap)
    group = cell if cell is not None else max(plan.side) if tiles else 1
    if group < 1:
        raise UserError(f"--cell: {cell} patches; choose 1 or more.")
    shape = (-(-plan.rows // group), -(-plan.columns // group), encoder.width)
    about = {
        **_about(made, spec), "scene": scene.stamp(), "scene_bands": list(scene.bands),
        "tiling": [plan.cell_px, *plan.side, *plan.overlap], "group": group, "batch_size": batch_size,
    }  # fmt: skip

    def network(batch: Batch, _: torch.Generator) -> Tensor:
        return mapped(batch.image)

    with held(folder_beside(out), "-o"):
        store = RowStore(folder_beside(out), shape, "float32", about)
        notes = [*_notes(made), *notes, *([f"went on after {store.done:,} of {shape[0]:,} rows"] if store.done else [])]
        if store.done < shape[0]:
            parts = blended(
                scene, network, plan, made.image, first=store.done * group, batch_size=batch_size, device=device,
                on_windows=on_windows,
            )  # fmt: skip
            for rows in grouped(parts, group):
                store.append(rows)
        cell_px = plan.cell_px * group
        if tiles:
            _write_tiles(store, scene, cell_px, out, {**about, "made_of": scene.uri, "cell_px": cell_px})
        else:
            names = [f"feature_{number}" for number in range(encoder.width)]
            tags = {"terrasieve_encoder": about["encoder"], "terrasieve_scene": scene.uri, "cell_px": str(cell_px)}
            cog.write_cog(store, out, scene, cell_px, nodata=float("nan"), names=names, tags=tags)
        paths = [out]
        if preview is not None:
            paths.append(write_preview(store, scene, cell_px, out.with_suffix(f".{preview}.png"), preview, clusters))
        store.remove()
    return Embedded(paths, notes, [])


def _about(made: Opened, spec: str | Path) -> dict[str, Any]:
    """Say what vectors are made with: the encoder by its name and a digest of its weights, and how images are read."""
    total = hashlib.blake2b(digest_size=16)
    for name, tensor in made.encoder.state_dict().items():
        total.update(name.encode())
        total.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    image = made.image.model_dump(mode="json", include={"size_px", "bands", "mean", "std"})
    return {"encoder": total.hexdigest(), "encoder_spec": str(spec), **image}


def _notes(made: Opened) -> list[str]:
    return [*made.notes, *([made.statistics] if made.statistics else [])]


def _mapped(encoder: AnyEncoder, blank: Tensor) -> tuple[Callable[[Tensor], Tensor], list[str]]:
    """Choose how images become a map: an encoder's last one, or its vector as the one cell of a window."""
    try:
        with torch.inference_mode():
            feature_map(encoder, blank)
    except UserError:
        told = f"{encoder.name} gives no map of features: a window is one cell, and windows do not overlap"
        return lambda images_BCHW: encoder.features(images_BCHW)[:, :, None, None], [told]
    return partial(feature_map, encoder), []


def _plan(scene: Scene, image: ImageSettings, shape: Sequence[int], window: int | None, overlap: float) -> Tiling:
    """Lay windows over a scene so that a patch is a whole number of its pixels."""
    height, width = image.shape_px
    grid = shape[0], shape[1]
    patch_px = height // grid[0]
    if height != grid[0] * patch_px or width != grid[1] * patch_px:
        raise UserError(f"the encoder's map of {grid[0]} x {grid[1]} does not divide its {height} x {width} pixels.")
    if window is None:
        return tiling(scene, patch_px, grid, overlap)
    if height != width:
        raise UserError(f"--window: the encoder's images of {height} x {width} px are not square; leave it out.")
    if window < grid[0] or window % grid[0]:
        nearest = max(round(window / grid[0]), 1) * grid[0]
        raise UserError(
            f"--window: {window} px is no multiple of the {grid[0]} patches a side of the encoder; try {nearest}."
        )
    return tiling(scene, window // grid[0], grid, overlap)


def grouped(parts: Iterator[Rows], group: int) -> Iterator[NDArray[np.float32]]:
    """Average squares of ``group`` cells over those with data; squares without any are NaN.

    Args:
        parts: rows of a map from one that a square begins with to the last.
        group: cells a side; squares at the right and lower edge have fewer.

    Yields:
        (n, columns, K) finished rows of squares.
    """
    values: list[NDArray[np.float32]] = []
    valid: list[NDArray[np.bool_]] = []
    for part in parts:
        values.append(part.values)
        valid.append(part.valid)
        there = sum(one.shape[0] for one in valid)
        ready = there // group * group
        if ready:
            all_values, all_valid = np.concatenate(values, 1), np.concatenate(valid)
            yield _squares(all_values[:, :ready], all_valid[:ready], group)
            values, valid = [all_values[:, ready:]], [all_valid[ready:]]
    if valid and valid[-1].shape[0]:
        yield _squares(np.concatenate(values, 1), np.concatenate(valid), group)


def _squares(values: NDArray[np.float32], valid: NDArray[np.bool_], group: int) -> NDArray[np.float32]:
    rows, columns = (np.arange(0, side, group) for side in valid.shape)
    sums = np.where(valid, values, 0).astype(np.float64)
    counts = valid.astype(np.float64)
    for axis, at in ((-2, rows), (-1, columns)):
        sums, counts = np.add.reduceat(sums, at, axis), np.add.reduceat(counts, at, axis)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: NDArray[np.float32] = (sums / counts).astype(np.float32).transpose(1, 2, 0)
    return mean


def _write_tiles(store: RowStore, scene: Scene, cell_px: int, out: Path, about: dict[str, Any]) -> None:
    """Write a row per tile with data."""
    with table.writing(out, store.shape[2], about) as writer:
        for row in range(store.shape[0]):
            vectors = store.rows(row, row + 1)[0]
            columns = np.flatnonzero(np.isfinite(vectors[:, 0]))
            if not len(columns):
                continue
            left, top = columns * cell_px, np.full(len(columns), row * cell_px)
            windows = np.stack(
                [left, top, np.minimum(cell_px, scene.width - left), np.minimum(cell_px, scene.height - top)], 1
            )
            writer.write(table.places(_tiles(scene, windows)), vectors[columns])
        if not writer.rows:
            raise UserError(f"{scene.uri}: not one pixel is real, so there are no tiles.")


def _tiles(scene: Scene, windows: NDArray[np.int64]) -> list[dict[str, Any]]:
    outlines, centres = [None] * len(windows), np.full((len(windows), 2), np.nan)
    if scene.crs is not None and scene.transform is not None:
        outlines, centres = geo.window_places(scene.transform, scene.crs, windows)
    return [
        {
            "id": manifest.row_id(scene.uri, window), "uri": scene.uri, "window": window,
            "geometry": None if outline is None else shapely.to_wkb(outline),
            "lon": lon if np.isfinite(lon) else None, "lat": lat if np.isfinite(lat) else None,
        }
        for window, outline, (lon, lat) in zip(windows.tolist(), outlines, centres.tolist(), strict=True)
    ]  # fmt: skip
