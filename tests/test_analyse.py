"""``terrasieve redundancy``: encoders of runs and exports, real imagery, and mistakes that a user can mend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from terrasieve import analyse, assess, manifest
from terrasieve.cli import app
from terrasieve.curate.scan import scan
from terrasieve.errors import UserError
from terrasieve.pretrain import pretrain
from terrasieve.recipe import Recipe


def command(*words: str | Path) -> str:
    result = CliRunner().invoke(app, ["redundancy", *map(str, words)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def run(tiny: Callable[..., Recipe], tmp_path: Path) -> Path:
    pretrain(tiny(steps=1), tmp_path / "run")
    return tmp_path / "run"


def test_a_run_and_its_export_give_the_same_scores(run: Path, small_manifest: Path, tmp_path: Path) -> None:
    assess.export_run(run, tmp_path / "backbone")
    found = {}
    for name, encoder in (("run", run), ("export", tmp_path / "backbone")):
        for of in ("pixels", "embeddings", "features"):
            folder = tmp_path / f"{name}-{of}"
            found[name, of] = analyse.analyse(small_manifest, folder, encoder=encoder, of=of, workers=0).table
            assert {"pixels": "raw patches", "embeddings": "patch embeddings", "features": "after the last"}[of] in (
                folder / "report.html"
            ).read_text()
    for of in ("pixels", "embeddings", "features"):
        scores = [
            table.select(list(analyse.redundancy_table.SCORES)) for table in (found["run", of], found["export", of])
        ]
        assert scores[0].equals(scores[1]), of
    means = [pa.compute.mean(found["run", of]["cosine_mean"]).as_py() for of in ("pixels", "embeddings", "features")]
    assert len(set(means)) == 3
    assert "24 images scored" in command(small_manifest, "-o", tmp_path / "default", "--encoder", run, "--workers", "0")
    default = analyse.analyse(small_manifest, tmp_path / "default", encoder=run, workers=0).table
    assert default.equals(found["run", "embeddings"])


def test_mistakes_with_an_encoder(run: Path, small_manifest: Path, tmp_path: Path) -> None:
    grey = tmp_path / "grey"
    grey.mkdir()
    from PIL import Image

    Image.fromarray(np.zeros((32, 32), np.uint8)).save(grey / "a.png")
    manifest.write(scan(grey).table, tmp_path / "grey.parquet")
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text("{}")
    cases: list[tuple[list[str | Path], str]] = [
        (
            [tmp_path / "grey.parquet", "--encoder", run],
            r"blue, green, red, nir is not in every image.*All images have: grey; the encoder takes",
        ),
        ([small_manifest, "--encoder", run, "--size-px", "64"], "--size-px: the size and the bands of the encoder"),
        ([small_manifest, "--encoder", run, "--bands", "red"], "--bands: the size and the bands of the encoder"),
        ([small_manifest, "--encoder", run, "--patch-px", "4"], "--patch-px: the encoder's patch of 8 px"),
        ([small_manifest, "--encoder", tmp_path / "empty"], "neither a run folder"),
        ([small_manifest, "--encoder", tmp_path / "nowhere"], "holds no recipe.yaml"),
        ([small_manifest, "--encoder", tmp_path / "odd"], "no folder that terrasieve export wrote"),
    ]
    for words, message in cases:
        with pytest.raises(UserError, match=message):
            command(*words, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--of", "features"], "--of features needs an encoder"),
        (["--of", "pixel"], "--of: 'pixel' is not one of pixels, embeddings, features"),
        (["--reduction", "max"], "--reduction: 'max' is not one of mean, largest, cover"),
        (["--threshold", "1.5"], r"--threshold: .*less than or equal to 1; got 1\.5"),
        (["--patch-px", "0"], "--patch-px: .*greater than 0; got 0"),
        (["--patch-px", "15"], "A patch of 15 px does not divide an image of 224 x 224 px"),
        (["--size-px", "32", "--patch-px", "32"], "two patches or more"),
        (["--size-px", "-3"], "--size-px: -3 is not a number of pixels"),
        (
            ["--bands", "red,swir1"],
            "red, swir1 is not in every image.*All images have: blue, green, nir, red; choose with --bands",
        ),
        (["--workers", "-1"], "--workers"),
        (["--examples", "-1"], "--examples"),
    ],
)
def test_mistakes_are_told(small_manifest: Path, tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        command(small_manifest, "-o", tmp_path / "out", *words)
    assert not list(tmp_path.rglob("*.parquet"))


def test_manifests_without_an_image_to_use(tmp_path: Path) -> None:
    import rasterio

    shape = {"width": 32, "height": 32, "count": 1, "dtype": "uint16", "nodata": 0}
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", **shape) as file:
        file.write(np.zeros((1, 32, 32), np.uint16))
    manifest.write(scan(tmp_path / "a.tif").table, tmp_path / "m.parquet")
    with pytest.raises(UserError, match="not one pixel is real"):
        command(tmp_path / "m.parquet", "-o", tmp_path / "out")
    (tmp_path / "a.tif").write_text("no image")
    manifest.write(scan(tmp_path / "a.tif").table, tmp_path / "m.parquet")
    with pytest.raises(UserError, match="0 of 1 are kept"):
        command(tmp_path / "m.parquet", "-o", tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Choose another with -o"):
        analyse_small(tmp_path)


def analyse_small(folder: Path) -> None:
    from PIL import Image

    Image.fromarray(np.eye(32, dtype=np.uint8)).save(folder / "b.png")
    manifest.write(scan(folder / "b.png").table, folder / "b.parquet")
    command(folder / "b.parquet", "-o", folder / "file", "--size-px", "32", "--patch-px", "8", "--workers", "0")


def test_small_images_are_not_enlarged_without_a_word(small_manifest: Path, tmp_path: Path) -> None:
    said = command(small_manifest, "-o", tmp_path / "large", "--size-px", "64", "--workers", "0", "--examples", "0")
    assert "note: the images are enlarged from about 40 to 64 px" in said
    assert "<img" not in (tmp_path / "large" / "report.html").read_text()
    assert "note" not in command(
        small_manifest, "-o", tmp_path / "same", "--size-px", "40", "--patch-px", "8", "--workers", "0"
    )


@pytest.mark.parametrize("bands", ["band 4 reflectance,band 3 reflectance", "band 7 reflectance"])
def test_real_scenes_with_no_data(shared_data: Path, tmp_path: Path, bands: str) -> None:
    """Landsat 7 stacks in int16, with fill, whose last bands have different names: bands have to be chosen."""
    scenes = [
        shared_data / "landsat_scenes" / f"LE702204{name}_stack.tif" for name in ("91999322EDC01", "92002106EDC00")
    ]
    manifest.write(scan(scenes).table, tmp_path / "m.parquet")
    words = [tmp_path / "m.parquet", "-o", tmp_path / "out", "--workers", "0"]
    assert "2 images scored" in command(*words, "--bands", bands)
    import geopandas

    opened = geopandas.read_parquet(tmp_path / "out" / "redundancy.parquet")
    assert opened.geometry.notna().all()
    assert (opened.no_data_patches >= 0).all() and opened.cosine_mean.between(-1, 1).all()
    assert (opened.effective_rank <= 196).all()
