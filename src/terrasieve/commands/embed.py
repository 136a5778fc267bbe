"""The command ``terrasieve embed``: its options, its progress bar and what it says at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from terrasieve.commands.evaluate import AnyEncoder
from terrasieve.errors import UserError

EXAMPLES = (
    "Examples: terrasieve embed runs/my_run imagery.parquet -o vectors.parquet  ·  "
    "terrasieve embed runs/my_run scene.tif -o features.tif --preview pca  ·  "
    "terrasieve embed backbone/ scene.tif -o tiles.parquet  ·  "
    "terrasieve embed mae_pretrain_vit_base.pth scene.tif --bands red,green,blue -o tiles.parquet  ·  "
    "terrasieve embed timm:resnet50 imagery.parquet -o vectors.parquet"
)


def embed(
    encoder: AnyEncoder,
    images: Annotated[str, typer.Argument(help="Manifest (.parquet), or a scene (GeoTIFF, COG, JPEG 2000, ...).")],
    output: Annotated[Path, typer.Option("-o", "--output", help=".parquet: vectors; of a scene also .tif: a COG.")],
    window: Annotated[int | None, typer.Option(help="Pixels of the scene seen at once; default: as trained.")] = None,
    overlap: Annotated[float, typer.Option(help="Of a scene's windows, a share of their side.")] = 0.5,
    cell: Annotated[int | None, typer.Option(help="Patches a side of a COG's cell (1) or of a tile (window).")] = None,
    bands: Annotated[
        str | None,
        typer.Option(help="Of the images, in the encoder's order, comma-separated; default: by name, or all."),
    ] = None,
    size_px: Annotated[
        int | None,
        typer.Option(help="Of an encoder that is no run: side of what it sees; default: as it was trained."),
    ] = None,
    gsd_m: Annotated[float | None, typer.Option(help="Likewise: metres per pixel, for Scale-MAE's positions.")] = None,
    preview: Annotated[str | None, typer.Option(help="pca or kmeans: also a picture beside the scene.")] = None,
    clusters: Annotated[int, typer.Option(help="Of --preview kmeans.")] = 8,
    batch_size: Annotated[int, typer.Option(help="Windows of a scene computed at a time.")] = 16,
    workers: Annotated[int, typer.Option(help="Reading processes of a manifest.")] = 1,
) -> None:
    """Compute features: a vector per image of a manifest, or a seamless map of a scene, resumable."""
    from terrasieve.display import counting, err, loading, out

    with loading():
        from terrasieve import embedding
        from terrasieve.opened import Wanted

    wanted = Wanted(tuple(bands.split(",")) if bands else None, size_px, gsd_m)

    if images.endswith((".parquet", ".geoparquet")):
        given = [("--preview", preview), ("--cell", cell), ("--window", window)]
        wrong = next((name for name, value in given if value is not None), None)
        if wrong:
            raise UserError(f"{wrong} is for a scene; {images} is a manifest.")
        with counting("embed", "images") as tick:
            done = embedding.embed_manifest(
                encoder, Path(images), output, wanted=wanted, workers=workers, on_images=tick
            )
    else:
        if preview not in (None, "pca", "kmeans"):
            raise UserError(f"--preview: {preview!r} is not one of pca, kmeans.")
        for name, count in (("--clusters", clusters), ("--batch-size", batch_size)):
            if count < 1:
                raise UserError(f"{name}: {count}; choose 1 or more.")
        with counting("embed", "windows") as tick:
            done = embedding.embed_scene(
                encoder, images, output, window=window, overlap=overlap, cell=cell, wanted=wanted,
                preview=preview,  # type: ignore[arg-type]
                clusters=clusters, batch_size=batch_size, on_windows=tick,
            )  # fmt: skip
    for uri, reason in done.failed:
        err.print(f"left out {uri}: {reason}", markup=False)
    if done.failed:
        out.print(f"left out: {len(done.failed):,} images that cannot be read", markup=False)
    for note in done.notes:
        out.print(f"note: {note}", markup=False)
    for path in done.paths:
        out.print(str(path), markup=False)
