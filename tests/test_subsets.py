"""The command ``terrasieve subset`` on real files: scores in their order, nested manifests, mistakes named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from typer.testing import CliRunner

from terrasieve import manifest
from terrasieve.cli import app
from terrasieve.curate.engine import Local
from terrasieve.curate.scan import scan
from terrasieve.evaluate import richness
from terrasieve.keyed import numpy_generator


def run(*arguments: object) -> str:
    said = CliRunner().invoke(app, ["subset", *map(str, arguments), "--workers", "1"], catch_exceptions=False)
    assert said.exit_code == 0, said.output
    return said.output


def kept(path: Path) -> set[str]:
    table = manifest.read(path)
    return set(table.filter(table["keep"])["uri"].to_pylist())


@pytest.fixture(scope="module")
def textures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 JPEGs: noise of rising contrast, of which the last eight are one image; and a file that is cut off."""
    root = tmp_path_factory.mktemp("textures")
    for number in range(24):
        noise = numpy_generator(0, "test-subsets", min(number, 16)).normal(size=(64, 48))
        grey = np.clip(120 + (4 + 3 * min(number, 16)) * noise, 0, 255).astype(np.uint8)
        Image.fromarray(grey).save(root / f"{number:02d}.png")
    (root / "99.png").write_bytes((root / "00.png").read_bytes())
    table = scan([root], workers=1).table
    manifest.write(table, root / "textures.parquet")
    (root / "99.png").write_bytes(b"cut")
    return root / "textures.parquet"


def names(uris: set[str]) -> set[int]:
    return {int(Path(uri).stem) for uri in uris}


def test_hog_takes_the_strongest_texture(textures: Path, tmp_path: Path) -> None:
    said = run(textures, "-o", tmp_path / "rich.parquet", "--share", ".25,.5", "--by", "hog", "--balance", "none")
    small, large = (names(kept(tmp_path / f"rich_{percent}.parquet")) for percent in (25, 50))
    assert small < large and len(small) == 6 and len(large) == 12
    assert min(large) >= 12
    assert "25 %: 6 images" in said
    page = (tmp_path / "rich.html").read_text()
    assert "Not readable, and in none: 1." in page and "<script" not in page


def test_density_leaves_out_what_is_repeated(textures: Path, tmp_path: Path) -> None:
    run(textures, "-o", tmp_path / "half.parquet", "--share", ".6", "--balance", "none", "--neighbours", 3)
    assert sum(number >= 16 for number in names(kept(tmp_path / "half.parquet"))) == 0


def test_given_embeddings_decide_and_have_to_fit(textures: Path, tmp_path: Path) -> None:
    points = numpy_generator(0, "test-subsets-points").normal(size=(25, 8)).astype(np.float32)
    points[5:20] = points[5]
    np.save(tmp_path / "points.npy", points)
    what = (textures, "-o", tmp_path / "given.parquet", "--share", ".3", "--embeddings")
    run(*what, tmp_path / "points.npy", "--balance", "none", "--neighbours", 3)
    assert not names(kept(tmp_path / "given.parquet")) & set(range(5, 20))
    np.save(tmp_path / "short.npy", points[:7])
    said = CliRunner().invoke(app, ["subset", *map(str, what), str(tmp_path / "short.npy")])
    assert "shape (7, 8)" in str(said.exception) and "25" in str(said.exception)


@pytest.mark.parametrize("balance", ["clusters", "geography"])
def test_the_same_command_writes_the_same_subset(small_manifest: Path, tmp_path: Path, balance: str) -> None:
    for name in ("one", "two"):
        run(small_manifest, "-o", tmp_path / f"{name}.parquet", "--share", ".5", "--balance", balance)
    assert manifest.content_hash(tmp_path / "one.parquet") == manifest.content_hash(tmp_path / "two.parquet")
    assert len(kept(tmp_path / "one.parquet")) == 12


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--share", "1.5"], "--share: 1.5 is not within"),
        (["--share", "x"], "comma-separated numbers"),
        (["--by", "beauty"], "--by: Input should be 'density'"),
        (["--embeddings", "a.npy", "--run", "b"], "choose one"),
        (["--embeddings", "absent.npy"], "Cannot read embeddings"),
    ],
)
def test_mistakes_are_named(small_manifest: Path, tmp_path: Path, options: list[str], says: str) -> None:
    said = CliRunner().invoke(app, ["subset", str(small_manifest), "-o", str(tmp_path / "x.parquet"), *options])
    assert says in str(said.exception)
    assert not list(tmp_path.iterdir())


def test_energy_is_judged_by_the_scale_of_its_kind(tmp_path: Path) -> None:
    noise = numpy_generator(0, "test-scale").integers(1, 250, (64, 64))
    Image.fromarray(noise.astype(np.uint8)).save(tmp_path / "a.png")
    Image.fromarray((40 * noise).astype(np.uint16)).save(tmp_path / "b.png")
    table: pa.Table = scan([tmp_path], workers=1).table
    places = list(zip(*(table[name].to_pylist() for name in ("uri", "window", "bands")), strict=True))
    found = richness.measure(places, Local(1), lambda _done, _total: None)
    assert found.hog[1] == pytest.approx(1600 * found.hog[0], rel=1e-3)
    energy = found.energy(np.array([0, 1]))
    assert energy[0] == pytest.approx(energy[1], rel=1e-3)
    assert np.abs(found.thumbs[0].astype(int) - found.thumbs[1]).max() <= 1
