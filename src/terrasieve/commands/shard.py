"""The command ``terrasieve shard``: its options, its progress bar and what it says at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from terrasieve.errors import Interrupted, UserError

EXAMPLES = (
    "Examples: terrasieve shard curated/manifest.parquet -o shards --mb 256  ·  terrasieve shard -o shards --verify"
    "  ·  terrasieve pretrain RECIPE data=shards/manifest.parquet"
)


def shard(
    manifest: Annotated[Path | None, typer.Argument(help="Manifest whose kept images are written.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the shards.")] = Path("shards"),
    mb: Annotated[float, typer.Option(min=0.001, help="Size of a shard in megabytes.")] = 256.0,
    jpeg_quality: Annotated[
        int | None,
        typer.Option(min=1, max=100, help="Of windows cut out of 8-bit grey or RGB files; default: without loss."),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check the shards in the folder, write nothing.")] = False,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one per core.")] = None,
    engine: Annotated[str, typer.Option(help="local or ray (an existing cluster, or this machine).")] = "local",
) -> None:
    """Write the kept images as WebDataset shards in Hilbert order, with an index, checksums and a manifest."""
    from terrasieve.curate.engine import engine_of
    from terrasieve.curate.shards import ShardSettings, damaged, export_shards, read_index
    from terrasieve.curate.step import Work
    from terrasieve.display import counting, out

    if verify:
        with counting("verify", "shards") as tick:
            bad = damaged(output, Work(output, engine_of(engine, workers), tick=tick))
        total = read_index(output).num_rows
        if bad:
            said = "".join(f"\n  {name}: {wrong}" for name, wrong in bad.items())
            remedy = "Write them again with the command that made them: it leaves the others as they are."
            raise UserError(f"{len(bad):,} of {total:,} shards in {output} are damaged:{said}\n{remedy}")
        out.print(f"{total:,} shards in {output}, all whole", markup=False)
        return
    if manifest is None:
        raise UserError("Which manifest? Give it as `terrasieve shard MANIFEST -o DIR`, or check with --verify.")
    settings = ShardSettings(shard_mb=mb, jpeg_quality=jpeg_quality)
    with counting("shard", "images") as tick:
        try:
            result = export_shards(manifest, output, settings, Work(output, engine_of(engine, workers), tick=tick))
        except KeyboardInterrupt:
            raise Interrupted("interrupted; the same command goes on from here") from None
    index = read_index(output)
    megabytes = sum(index["bytes"].to_pylist()) / 1e6
    out.print(f"{result.kept:,} images in {index.num_rows:,} shards, {megabytes:,.1f} MB", markup=False)
    for code, count in result.dropped.most_common():
        out.print(f"left out: {count:,} {code}; the column 'reason' of the manifest says why", markup=False)
    for note in result.notes:
        out.print(note, markup=False)
    out.print(f"manifest: {output / 'manifest.parquet'}", markup=False)
