"""The page on geography: colours, components and figures against what they are made from; the command on real files."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from terrasieve import manifest
from terrasieve.cli import app
from terrasieve.evaluate import geography
from terrasieve.evaluate.geography import similarity_by_distance
from terrasieve.evaluate.split_files import write_split
from terrasieve.evaluate.splits import SplitSettings
from terrasieve.imagery.geo import haversine_km
from terrasieve.keyed import generator, numpy_generator
from terrasieve.pretrain import new_folder, pretrain
from terrasieve.report import geography_figures as figures
from terrasieve.report.geography_page import principal


def scattered(count: int) -> tuple[np.ndarray, np.ndarray]:
    draw = numpy_generator(0, "places")
    return draw.uniform(-180, 180, count), draw.uniform(-80, 80, count)


def test_principal_components_are_those_of_a_decomposition() -> None:
    features = torch.randn(50, 6, generator=generator(0, "features")) * torch.tensor([9.0, 4, 2, 1, 1, 1])
    found, shares = principal(features)
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    left, values, _ = torch.linalg.svd(unit - unit.mean(0), full_matrices=False)
    assert np.abs(found) == pytest.approx(np.abs((left * values)[:, :3].numpy()), abs=1e-9)
    assert shares == pytest.approx((values**2 / (values**2).sum())[:3].numpy())
    assert principal(torch.ones(4, 2))[0].tolist() == [[0, 0, 0]] * 4


def test_similarity_by_distance_equals_a_loop_over_pairs() -> None:
    lon, lat = scattered(40)
    features = torch.randn(40, 4, generator=generator(0, "features"))
    found = similarity_by_distance(features, lon, lat, 9000, bins=4)
    assert found is not None
    unit = torch.nn.functional.normalize(features.double(), dim=1).numpy()
    pairs = [
        (float(haversine_km(lon[i], lat[i], lon[j], lat[j])), float(unit[i] @ unit[j]))
        for i in range(40)
        for j in range(i)
    ]
    pairs = sorted(pair for pair in pairs if pair[0] <= 9000)
    order = sorted(range(len(pairs)), key=lambda p: pairs[p][1])
    percentile = {pair: 100 * rank / (len(pairs) - 1) for rank, pair in enumerate(order)}
    bins = np.array_split(np.arange(len(pairs)), 4)
    assert found.percentile == pytest.approx([np.mean([percentile[p] for p in part]) for part in bins])
    assert found.edges_km[1:] == pytest.approx([pairs[part[-1]][0] for part in bins])
    assert similarity_by_distance(features[:3], lon[:3], lat[:3]) is None


def test_colours_of_places_are_apart_and_close_at_the_antimeridian() -> None:
    lon, lat = np.array([-179.9, 179.9, 0, 0, 90.0]), np.array([0, 0, 70.0, -70, 0])
    colours = figures.place_colours(lon, lat)
    apart = np.linalg.norm(colours[:, None] - colours, axis=2)
    assert apart[0, 1] < 3
    assert apart[2, 3] > 60
    assert apart[0, 4] > 60
    assert colours.min() >= 0
    assert colours.max() <= 255
    components = figures.component_colours(np.stack([np.arange(100.0)] * 3, 1))
    assert (np.diff(components[5:95, 0]) > 0).all()
    assert components.min() >= 28


def test_thousands_of_images_are_painted_where_they_lie() -> None:
    lon, lat = scattered(figures.DOTS + 1)
    few, many = (figures.world(lon[:n], lat[:n], figures.place_colours(lon[:n], lat[:n])) for n in (300, len(lon)))
    assert few.count("<circle") == 300
    assert many.count("<circle") == 0
    content = re.search(r"data:image/png;base64,([^\"]+)", many)
    assert content
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(content[1]))))
    frame = figures.maps.Frame(lon, lat)
    x, y = ([axis(v) for v in values] for axis, values in ((frame.across, lon), (frame.up, lat)))
    cells = {
        (int((b - min(y)) // figures.CELL_PX), int((a - min(x)) // figures.CELL_PX)) for a, b in zip(x, y, strict=True)
    }
    assert {tuple(place) for place in np.argwhere(picture[..., 3]).tolist()} == cells


def test_the_page_of_a_run_and_what_the_command_says(tiny: Any, small_manifest: Path, tmp_path: Path) -> None:
    settings = tiny(steps=2)
    run = new_folder(settings)
    pretrain(settings, run)
    write_split(small_manifest, tmp_path / "s.parquet", SplitSettings(by="blocks", block_deg=0.01, test=0.4, val=0))
    said = CliRunner().invoke(app, ["map", str(run), str(tmp_path / "s.parquet"), "-o", str(tmp_path / "map.html")])
    assert said.exit_code == 0, said.output
    assert "test images" in said.output
    page = (tmp_path / "map.html").read_text()
    assert re.search(r"Of \d+ test images, all pairs", page)
    assert "test images are among those of training" in page  # they were, of this run
    assert page.count("<circle") > 4 * 24  # two maps, two spaces
    assert "http" not in page.replace("http-equiv", "")
    said = CliRunner().invoke(
        app, ["map", str(run), str(small_manifest), "-o", str(tmp_path / "all.html"), "--most", "9"]
    )
    assert "9 of 24 images, drawn by key" in said.output
    assert "names no test images" in (tmp_path / "all.html").read_text()


def test_a_manifest_without_places_has_no_map(tiny: Any, small_manifest: Path, tmp_path: Path) -> None:
    table = manifest.read(small_manifest)
    for name in ("lon", "lat"):
        empty = manifest.pa.nulls(len(table), manifest.pa.float64())
        table = table.set_column(table.schema.get_field_index(name), name, empty)
    manifest.write(table, tmp_path / "m.parquet")
    for arguments, words in (
        (["m.parquet", "-o", "map.html"], "coordinates"),
        (["m.parquet", "-o", "map.png"], "html"),
    ):
        said = CliRunner().invoke(app, ["map", "run", str(tmp_path / arguments[0]), "-o", arguments[2]])
        assert words in str(said.exception)


def test_evaluate_keeps_correlations_beside_the_scores(tiny: Any, small_manifest: Path) -> None:
    settings = tiny(steps=2)
    run = new_folder(settings)
    pretrain(settings, run)
    command = [
        "evaluate",
        str(run),
        "--task",
        f"manifest:{small_manifest}",
        "--split",
        "random:0.5",
        "--protocol",
        "knn",
    ]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0, said.output
    assert "rank correlation" in said.output
    found = geography.read(run / "geography.json")
    assert set(found) == {"pretrained", "random init", "raw pixels"}
    assert all(one.images == 12 and one.low <= one.value <= one.high for one in found.values())
