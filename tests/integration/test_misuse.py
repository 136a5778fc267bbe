"""Misuse that would cost a user time or work: it is refused at once, and the message says what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from terrasieve import manifest
from terrasieve.cli import app
from terrasieve.data.images import from_table
from terrasieve.errors import UserError


def refused(*words: str | Path) -> str:
    """Run a command that has to fail; return its message."""
    error = CliRunner().invoke(app, [str(word) for word in words]).exception
    assert isinstance(error, UserError), error
    return str(error)


def done(*words: str | Path) -> str:
    """Run a command that has to succeed; return what it prints."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, (words, result.output, result.exception)
    return result.output


def test_a_step_leaves_the_pairs_of_a_curation_alone(tmp_path: Path, small_manifest: Path) -> None:
    """With the default --folder, `exact` over another manifest took the pairs for review away from ./curated."""
    folder = tmp_path / "curated"
    done("hash", small_manifest, "-o", tmp_path / "hashed.parquet", "--folder", folder, "--workers", "1")
    done("exact", small_manifest, "-o", tmp_path / "exact.parquet", "--folder", folder, "--workers", "1")
    (folder / "steps.json").write_text("[]")  # as `terrasieve curate` leaves it
    before = (folder / "pairs.parquet").read_bytes()
    for step in ("exact", "verify"):
        said = refused(step, tmp_path / "exact.parquet", "-o", tmp_path / "again.parquet", "--folder", folder)
        assert "--folder" in said and str(folder) in said
    assert (folder / "pairs.parquet").read_bytes() == before
    done("sparse", small_manifest, "-o", tmp_path / "sparse.parquet", "--folder", folder)


def test_an_unknown_protocol_is_named_before_anything_is_read(tmp_path: Path) -> None:
    said = refused("evaluate", tmp_path, "--task", "folder:nowhere", "--protocol", "knn, lineal")
    assert "'lineal'" in said and "knn, linear" in said


@pytest.mark.parametrize("name", ["ucm.csv", "ucm"])
def test_a_manifest_is_not_written_under_another_formats_name(tmp_path: Path, name: str) -> None:
    assert ".parquet" in refused("index", tmp_path, "-o", tmp_path / name)
    assert not (tmp_path / name).exists()


def test_bands_that_some_images_lack_can_be_asked_for(tmp_path: Path, small_manifest: Path) -> None:
    """The message names the command that keeps the images with these bands; what it writes can be read."""
    rows = manifest.read(small_manifest).to_pylist()
    grey = [row | {"id": f"{i:016x}", "bands": ["grey"]} for i, row in enumerate(rows[:2])]
    manifest.write(manifest.rows_to_table([*rows, *grey]), tmp_path / "mixed.parquet")
    bands = tuple(rows[0]["bands"][:2])
    with pytest.raises(UserError, match=r"2 row\(s\) have grey") as error:
        from_table(manifest.read(tmp_path / "mixed.parquet"), bands)
    setting = re.findall(r"'(bands=.*?)'", str(error.value))[-1]
    done("exclude", tmp_path / "mixed.parquet", "-o", tmp_path / "kept.parquet", "min_px=1", setting)
    assert len(from_table(manifest.read(tmp_path / "kept.parquet"), bands)) == len(rows)
