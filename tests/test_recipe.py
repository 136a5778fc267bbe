"""Recipes: a mistake is named with its key, its value and the nearest spelling; every recipe of the project builds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from terrasieve import methods, recipe
from terrasieve.errors import UserError
from terrasieve.nn.convolution import encoder_of
from terrasieve.nn.encoder import Encoder
from terrasieve.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
TRAINING = [path for path in sorted((ROOT / "recipes").glob("*.yaml")) if not path.name.startswith("curate_")]
RECIPES = [*TRAINING, ROOT / "src" / "terrasieve" / "demo.yaml"]
SIMPLE = "data: m.parquet\nsteps: 10\nmethod: {name: selective_mae}\n"


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_loads_and_builds_on_meta(path: Path) -> None:
    assert path.read_text().startswith("#"), "the first comment states the result"
    settings = recipe.load(path, (), recipe.kind_of(path))
    of_task = {} if isinstance(settings, Recipe) else {"classes": 5}
    untrained = settings.encoder.model_copy(update={"weights": None})
    with torch.device("meta"):
        encoder = encoder_of(untrained, len(settings.image.bands or "rgb"), settings.image.shape_px)
        geography = settings.geography if isinstance(settings, Recipe) else None
        method = methods.build(settings.method.model_copy(update=of_task), encoder, 0, geography)
    assert sum(p.numel() for p in method.parameters()) > 1e5
    assert 0 < method.lr_scale <= 2


def test_dump_reads_back(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    settings = tiny(seed=5)
    (tmp_path / "r.yaml").write_text(recipe.dump(settings))
    assert recipe.load(tmp_path / "r.yaml") == settings


MISTAKES = [
    (["stepz=3"], r"stepz: there is no such key. Did you mean 'steps'\?"),
    (["method.polcy=hog"], r"method\.polcy: there is no such key. Did you mean 'policy'\?"),
    (["method.decoder.depht=3"], r"method\.decoder\.depht: .*Did you mean 'depth'\?"),
    (["method.policy=hogg"], r"method\.policy: .*'hog', 'hog_sampled', 'uniform' or 'random'; got 'hogg' \(str\)"),
    (["method.name=selectivemae"], r"method\.name: 'selectivemae' is not one of .*Did you mean 'selective_mae'\?"),
    (["steps=many"], r"steps: .*integer.*got 'many' \(str\)"),
    (["steps=-1"], r"steps: .*greater than 0; got -1"),
    (["method.encode=0.5", "method.reconstruct=0.6"], r"encode 0\.5 \+ reconstruct 0\.6 is more than 1"),
    (["image.size_px=100"], r"a patch of 16 px does not divide image.size_px 100 x 100"),
    (["image.bands=[red]", "image.mean=[1,2]"], r"image\.mean has 2 values for 1 bands"),
    (["accumulate=7"], r"accumulate 7 does not divide batch_size 64"),
    (["steps"], r"'steps' is not of the form key=value"),
    (["steps.x=3"], r"'steps' is a value, it has no keys below it"),
]


@pytest.mark.parametrize(("overrides", "message"), MISTAKES, ids=lambda v: v[0] if isinstance(v, list) else "")
def test_mistakes_are_explained(tmp_path: Path, overrides: list[str], message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(SIMPLE)
    with pytest.raises(UserError, match=message):
        recipe.load(path, overrides)


def test_all_mistakes_are_listed_at_once_and_broken_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(SIMPLE)
    with pytest.raises(UserError, match=r"has 2 mistake\(s\)"):
        recipe.load(path, ["stepz=1", "seed=x"])
    path.write_text("steps: 1\nsteps: 2\n")
    with pytest.raises(UserError, match="'steps' stands twice"):
        recipe.load(path)
    path.write_text("a: [1")
    with pytest.raises(UserError, match="not valid YAML"):
        recipe.load(path)
    with pytest.raises(UserError, match=r"Cannot read the recipe .*No such file"):
        recipe.load(tmp_path / "absent.yaml")


def test_an_impossible_model_is_explained() -> None:
    from terrasieve.nn.encoder import EncoderSettings

    with pytest.raises(UserError, match=r"is not a plain ViT|timm cannot build"):
        Encoder(EncoderSettings(name="vit_base_patch16_siglip_224"), 3, (32, 32))
    with pytest.raises(UserError, match="timm cannot build 'vit_smol'"):
        Encoder(EncoderSettings(name="vit_smol"), 3, (32, 32))


@pytest.mark.parametrize("key", ["drop_path=0.1", "window=4"])
def test_what_adapt_alone_does_is_refused_before_a_run_begins(key: str) -> None:
    path = ROOT / "recipes" / "mae_vit_tiny_ucmerced.yaml"
    with pytest.raises(UserError, match=rf"encoder.{key.split('=')[0]}: .* is for adapt; leave it out"):
        recipe.load(path, [f"encoder.{key}"])
