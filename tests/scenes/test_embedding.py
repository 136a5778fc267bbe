"""What `terrasieve embed` and `predict` make of scenes and manifests, as a user's files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from typer.testing import CliRunner

from terrasieve import manifest, recipe
from terrasieve.cli import app
from terrasieve.data.augment import resize
from terrasieve.data.images import from_table
from terrasieve.embedding import embed_manifest, embed_scene, grouped
from terrasieve.errors import UserError
from terrasieve.imagery import geo
from terrasieve.nn.backbones import open_backbone
from terrasieve.nn.encoder import Encoder
from terrasieve.opened import Wanted
from terrasieve.scenes.blend import Rows
from terrasieve.scenes.scene import open_scene
from terrasieve.scenes.store import folder_beside
from terrasieve.scenes.table import KEY, read

from .scene_file import write_scene


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of an untrained encoder of patches of 4 px in images of 16 px."""
    folder = tmp_path_factory.mktemp("run")
    content = {
        "name": "small", "data": "none.parquet", "steps": 1,
        "image": {"size_px": 16, "bands": ["red", "nir"], "mean": [100.0, 90.0], "std": [50.0, 60.0]},
        "encoder": {"name": "vit_tiny_patch16_224", "patch_px": 4, "depth": 1}, "method": {"name": "mae"},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(content), encoding="utf-8")
    settings = recipe.load(folder / "recipe.yaml", ())
    save_file(Encoder(settings.encoder, 2, (16, 16), 0).vit.state_dict(), folder / "weights.safetensors")
    return folder


def test_features_lie_where_the_scene_lies(run: Path, tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", 50, 70)
    done = embed_scene(run, scene, tmp_path / "out.tif", preview="pca")
    assert done.paths == [tmp_path / "out.tif", tmp_path / "out.pca.png"] and all(p.is_file() for p in done.paths)
    assert not folder_beside(tmp_path / "out.tif").exists()
    with rasterio.open(scene) as source, rasterio.open(tmp_path / "out.tif") as file:
        assert (file.count, file.height, file.width, file.dtypes[0]) == (192, 13, 18, "float32")
        assert file.crs == source.crs and file.res == (40, 40)
        assert (file.bounds.left, file.bounds.top) == (source.bounds.left, source.bounds.top)
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG" and np.isnan(file.nodata)
        assert np.isfinite(file.read()).all() and file.read().std() > 0.1


def test_an_interrupted_scene_goes_on_to_the_same_bytes(run: Path, tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", 90, 40)
    embed_scene(run, scene, tmp_path / "whole.tif", cell=3)

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_scene(run, scene, tmp_path / "out.tif", cell=3, on_windows=stop)
    assert not (tmp_path / "out.tif").exists()
    seen: list[int] = []
    done = embed_scene(run, scene, tmp_path / "out.tif", cell=3, on_windows=lambda at, _: seen.append(at))
    assert "went on after" in done.notes[0] and seen[0] > 4
    with rasterio.open(tmp_path / "out.tif") as a, rasterio.open(tmp_path / "whole.tif") as b:
        assert np.array_equal(a.read(), b.read())


def test_tiles_are_means_of_the_map_and_outlines_of_their_ground(run: Path, tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", 56, 72, nodata=0)
    with rasterio.open(scene, "r+") as file:
        pixels = file.read()
        pixels[:, :16, :16] = 0
        file.write(pixels)
    embed_scene(run, scene, tmp_path / "map.tif")
    embed_scene(run, scene, tmp_path / "tiles.parquet")
    places, vectors, about = read(tmp_path / "tiles.parquet")
    with rasterio.open(tmp_path / "map.tif") as file, rasterio.open(scene) as source:
        cells, transform, crs = file.read(), tuple(source.transform)[:6], "EPSG:32721"
    assert len(places) == 4 * 5 - 1 and about["cell_px"] == 16  # one tile has no data
    for row, vector in zip(places.to_pylist(), vectors, strict=True):
        x, y, width, height = row["window"]
        there = cells[:, y // 4 : (y + height) // 4, x // 4 : (x + width) // 4]
        assert np.allclose(vector, there.reshape(192, -1).mean(1), atol=1e-5)
        a, _, c, _, e, f = transform
        own = (a, 0.0, c + a * x, 0.0, e, f + e * y)
        outline = geo.footprint(own, crs, width, height)
        assert outline is not None and shapely.from_wkb(row["geometry"]).equals_exact(outline, 1e-9)
    meta = pq.read_metadata(tmp_path / "tiles.parquet").metadata
    assert json.loads(meta[b"geo"])["primary_column"] == "geometry" and KEY in meta


def test_a_manifest_gives_a_vector_per_image_and_lists_the_broken(
    run: Path, small_manifest: Path, tmp_path: Path
) -> None:
    table = manifest.read(small_manifest)
    rows = table.to_pylist()
    for row in rows:
        row["bands"] = ["blue", "green", "red", "nir"]
    rows[3]["uri"] = str(tmp_path / "gone.tif")
    manifest.write(manifest.rows_to_table(rows), tmp_path / "m.parquet")
    done = embed_manifest(run, tmp_path / "m.parquet", tmp_path / "v.parquet", workers=0)
    places, vectors, _ = read(tmp_path / "v.parquet")
    assert [uri for uri, _ in done.failed] == [str(tmp_path / "gone.tif")]
    assert places["id"].to_pylist() == [row["id"] for row in rows if row is not rows[3]]
    assert vectors.shape == (23, 192) and np.isfinite(vectors).all()
    assert places["geometry"][0].as_py() == rows[0]["geometry"]


def own_features(spec: str, bands: tuple[str, ...], images_BCHW: NDArray[Any], size_px: int) -> NDArray[np.float32]:
    """Compute what an encoder makes of images that are standardised by their own mean and deviation."""
    every = images_BCHW.astype(np.float64)
    mean, std = (torch.from_numpy(of(every, (0, 2, 3)).round(4))[:, None, None] for of in (np.mean, np.std))
    resized = torch.stack([resize(torch.from_numpy(image), size_px, size_px) for image in images_BCHW])
    with torch.inference_mode():
        found: Any = open_backbone(spec, bands, size_px).encoder.features(((resized - mean) / std).float())
    return np.asarray(found.numpy(), np.float32)


@pytest.mark.parametrize("kind", ["file", "timm:test_resnet@random", "torchvision:mobilenet_v3_small@random"])
def test_any_encoder_sees_scenes_and_manifests_standardised_by_themselves(
    kind: str, small_manifest: Path, tmp_path: Path
) -> None:
    spec = kind
    if kind == "file":
        spec = str(tmp_path / "vit.pth")
        torch.save(timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=0).state_dict(), spec)
    scene, wanted = write_scene(tmp_path / "scene.tif", 64, 64), Wanted(size_px=64)
    done = embed_scene(spec, scene, tmp_path / "tiles.parquet", wanted=wanted)
    with rasterio.open(scene) as source:
        expected = own_features(spec, ("red", "nir"), source.read()[None], 64)
    _, vectors, about = read(tmp_path / "tiles.parquet")
    assert np.allclose(vectors, expected, atol=2e-4) and about["bands"] == ["red", "nir"]
    assert any("these images" in note for note in done.notes)
    assert any("a window is one cell" in note for note in done.notes) == kind.startswith("torchvision")

    bands = ("nir", "red")
    embed_manifest(spec, small_manifest, tmp_path / "v.parquet", wanted=Wanted(bands, 32), workers=0)
    images = from_table(manifest.read(small_manifest), bands)
    pixels = np.stack([images.read(row).array for row in range(len(images))])
    assert np.allclose(read(tmp_path / "v.parquet")[1], own_features(spec, bands, pixels, 32), atol=2e-4)


def test_a_large_scene_is_measured_by_windows_all_over_it(tmp_path: Path) -> None:
    scene = open_scene(write_scene(tmp_path / "scene.tif", 200, 90), None)
    images = scene.images(side_px=8)
    assert images.bands == ("red", "nir") and len(images) == 16 * 12
    x, y, width, height = images.windows.T
    assert x.min() == y.min() == 0 and (x + width).max() == 90 and (y + height).max() == 200
    small = open_scene(tmp_path / "scene.tif", ("nir",)).images(side_px=100)
    covered = np.zeros((200, 90), bool)
    for left, top, wide, high in small.windows:
        covered[top : top + high, left : left + wide] = True
    assert covered.all() and small.bands == ("nir",)


@pytest.mark.parametrize("group", [1, 2, 3, 5])
def test_squares_are_means_over_cells_with_data(group: int) -> None:
    draw = np.random.Generator(np.random.Philox(group))
    values = draw.normal(size=(2, 11, 7)).astype(np.float32)
    valid = draw.random((11, 7)) > 0.4

    def parts() -> Iterator[Rows]:
        for top, end in ((0, 1), (1, 5), (5, 6), (6, 11)):
            yield Rows(values[:, top:end], valid[top:end], 0)

    found = np.concatenate(list(grouped(parts(), group)))
    assert found.shape == (-(-11 // group), -(-7 // group), 2)
    for row, column in np.ndindex(found.shape[:2]):
        area = np.s_[row * group : (row + 1) * group, column * group : (column + 1) * group]
        inside = values[:, area[0], area[1]][:, valid[area]]
        expected = inside.mean(1) if inside.size else np.full(2, np.nan)
        assert np.allclose(found[row, column], expected, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"window": 18}, "--window: 18 px is no multiple of the 4 patches.*try 16"),
        ({"overlap": 1.5}, "--overlap"),
        ({"cell": 0}, "--cell"),
        ({"wanted": Wanted(bands=("red", "swir"))}, "no band swir"),
        ({"wanted": Wanted(size_px=32)}, "trained with; leave out --size-px: of other"),
    ],
)
def test_mistakes_are_named(run: Path, tmp_path: Path, how: dict[str, Any], words: str) -> None:
    scene = write_scene(tmp_path / "scene.tif", 30, 30)
    with pytest.raises(UserError, match=words):
        embed_scene(run, scene, tmp_path / "out.tif", **how)
    with pytest.raises(UserError, match="ends in"):
        embed_scene(run, scene, tmp_path / "out.png")
    (tmp_path / "model.safetensors").touch()
    for text, words in (
        ("{", "is damaged"),
        ('{"terrasieve": {"bands": ["red"]}}', "it lacks size_px, mean, std, arch"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=words):
            embed_scene(tmp_path, scene, tmp_path / "out.tif")


def test_the_command_takes_any_encoder_and_says_how_it_sees_the_images(tmp_path: Path, small_manifest: Path) -> None:
    scene, out = write_scene(tmp_path / "scene.tif", 40, 40), str(tmp_path / "v.parquet")
    given = ["embed", "timm:test_resnet@random", "--bands", "nir", "--size-px", "32", "-o", out]
    for images in (scene, small_manifest):
        result = CliRunner().invoke(app, [*given, str(images)])
        assert result.exit_code == 0 and "images of 32 x 32 px" in result.output, result.output
        assert read(Path(out))[2]["bands"] == ["nir"]
    result = CliRunner().invoke(app, [*given, str(small_manifest), "--window", "32"])
    assert isinstance(result.exception, UserError) and "--window is for a scene" in str(result.exception)
