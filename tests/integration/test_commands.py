"""Every command as a user types it, in its own process, on the procedural Earth and on real imagery."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "selective_mae_vit_small_ucmerced.yaml"
SMALL = [
    "image.size_px=32",
    "encoder.name=vit_tiny_patch16_224",
    "encoder.patch_px=8",
    "batch_size=8",
    "precision=fp32",
    "log.every=2",
]


def terrasieve(*words: str, cwd: Path, expect: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "terrasieve", *words]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=280, env=os.environ | environment)
    assert done.returncode == expect, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def test_help_needs_neither_torch_nor_rasterio() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from terrasieve.cli import app\n"
        "for words in (['--help'], ['pretrain', '--help'], ['demo', '-h'], ['--version']):\n"
        "    result = CliRunner().invoke(app, words)\n"
        "    assert result.exit_code == 0, result.output\n"
        "heavy = {'torch', 'numpy', 'rasterio', 'timm', 'pyarrow', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_every_command_has_help_with_an_example(tmp_path: Path) -> None:
    listed = terrasieve("--help", cwd=tmp_path).stdout
    names = ("earth", "index", "pretrain", "adapt", "predict", "evaluate", "export", "report", "redundancy")
    for command in (*names, "sweep", "bench", "demo"):
        assert re.search(rf"\b{command}\b", listed)
        assert "Example" in terrasieve(command, "--help", cwd=tmp_path).stdout


@pytest.mark.slow
def test_from_images_to_a_backbone_in_timm(tmp_path: Path, shared_data: Path) -> None:
    """The issue's commands, with a smaller model: index, pretrain, evaluate, export, report."""
    images = shared_data / "ucmerced"
    said = terrasieve("index", str(images / "Images"), "-o", "ucm.parquet", cwd=tmp_path).stdout
    assert "2,100 files, 2,100 usable" in said
    done = terrasieve("pretrain", str(RECIPE), "data=ucm.parquet", "steps=4", *SMALL, cwd=tmp_path)
    assert "\x1b" not in done.stdout + done.stderr, "no progress bar where nobody looks"
    (run,) = (tmp_path / "runs").iterdir()
    assert {"recipe.yaml", "environment.json", "log.jsonl", "weights.safetensors", "report.html"} <= {
        path.name for path in run.iterdir()
    }
    assert list((run / "pictures").glob("*.png"))
    task = ["--task", f"folder:{images}", "--split", "split_80_20.csv", "--protocol", "knn"]
    table = terrasieve("evaluate", str(run), *task, cwd=tmp_path).stdout
    assert "pretrained" in table
    assert "random init" in table
    assert "raw pixels" in table
    scores = json.loads((run / "scores.json").read_text())
    assert {score["count"] for score in scores} == {420}
    assert all(score["low"] <= score["value"] <= score["high"] for score in scores)
    terrasieve("export", str(run), "-o", "backbone/", cwd=tmp_path)
    model = timm.create_model(f"local-dir:{tmp_path / 'backbone'}", pretrained=True).eval()
    from terrasieve import assess

    _, encoder = assess.load_run(run)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (model(x) - encoder.features(x)).abs().max() < 1e-5
    plain = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=0, global_pool="token",
        checkpoint_path=str(tmp_path / "backbone" / "model.safetensors"),
    ).eval()  # fmt: skip
    with torch.no_grad():
        assert (plain.forward_features(x) - encoder.encode(x)).abs().max() < 1e-5
    terrasieve("export", str(run), "-o", "backbone/", cwd=tmp_path, expect=2)


@pytest.mark.slow
def test_the_demo_makes_its_report(tmp_path: Path) -> None:
    """The demo, with few steps; its figures are checked where it is run in full."""
    said = terrasieve("demo", "-o", "demo", "--steps", "3", cwd=tmp_path).stdout
    assert "report:" in said
    (run,) = [path for path in (tmp_path / "demo").iterdir() if path.name.startswith("demo-")]
    page = (run / "report.html").read_text()
    assert "random init" in page
    assert (run / "backbone" / "model.safetensors").exists()


def test_mistakes_are_one_message_and_exit_code_2(tmp_path: Path, small_manifest: Path) -> None:
    (tmp_path / "text.parquet").write_text("not parquet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    data = f"data={small_manifest}"
    cases: list[tuple[list[str], str]] = [
        (["pretrain"], "Give a recipe, or --resume"),
        (["pretrain", "absent.yaml"], "Cannot read the recipe absent.yaml"),
        (["pretrain", str(RECIPE), data, "stepz=3"], "Did you mean 'steps'?"),
        (["pretrain", str(RECIPE), "data=absent.parquet"], "absent.parquet"),
        (["pretrain", str(RECIPE), "data=text.parquet"], "text.parquet"),
        (["pretrain", str(RECIPE), "data=other.parquet"], "other.parquet"),
        (["pretrain", str(RECIPE), data, "image.bands=[red, swir1]"], "red, swir1 is not in every image"),
        (["pretrain", "--resume", "nowhere"], "holds no recipe.yaml"),
        (["evaluate", "nowhere", "--task", "folder:."], "is not a run folder"),
        (["index", "nowhere", "-o", "x.parquet"], "nowhere"),
        (["bench", "--encoder", "huge"], "huge"),
    ]
    from typer.testing import CliRunner

    from terrasieve.cli import app
    from terrasieve.errors import UserError

    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        for words, message in cases:
            result = CliRunner().invoke(app, words)
            assert isinstance(result.exception, UserError), (words, result.exception, result.output)
            assert message in str(result.exception), (words, str(result.exception))
    finally:
        os.chdir(before)
    done = terrasieve("pretrain", "absent.yaml", cwd=tmp_path, expect=2)
    assert done.stderr.startswith("terrasieve: Cannot read the recipe absent.yaml")
    assert not list(tmp_path.glob("runs/*")), "a mistake leaves no run behind"
