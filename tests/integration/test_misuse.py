"""Misuse that would cost a user time or work: it is refused at once, and the message says what to do."""

from __future__ import annotations

import errno
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from terrasieve import cli, manifest
from terrasieve.data.images import from_table
from terrasieve.errors import UserError
from terrasieve.suite.data import top
from terrasieve.train import loop

ROOT = Path(__file__).resolve().parents[2]


def refused(*words: str | Path) -> str:
    """Run a command that has to fail; return its message."""
    error = CliRunner().invoke(cli.app, [str(word) for word in words]).exception
    assert isinstance(error, UserError), error
    return str(error)


def done(*words: str | Path) -> str:
    """Run a command that has to succeed; return what it prints."""
    result = CliRunner().invoke(cli.app, [str(word) for word in words])
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


def said_by_main(error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Let the scan of `terrasieve index` end with an error; return what the command line says of it."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("terrasieve.curate.scan.scan", fail)
    monkeypatch.setattr("sys.argv", ["terrasieve", "index", "images", "-o", "images.parquet"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == (130 if isinstance(error, KeyboardInterrupt) else 2)
    return capsys.readouterr().err


def test_ctrl_c_is_answered(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "interrupted" in said_by_main(KeyboardInterrupt(), monkeypatch, capsys)


def test_an_error_of_the_disk_is_a_message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "images.parquet")
    said = said_by_main(full, monkeypatch, capsys)
    assert "images.parquet: No space left on device" in said and "Free some space" in said
    foreign = ValueError("while serializing: No space left on device (os error 28)")
    assert "Free some space" in said_by_main(foreign, monkeypatch, capsys)
    with pytest.raises(OSError, match="Input/output"):  # of these nobody knows what to do: the traceback has to be seen
        said_by_main(OSError(errno.EIO, "Input/output error"), monkeypatch, capsys)


def test_the_first_ctrl_c_of_a_training_is_acknowledged(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Else users press it again, and that one loses the steps since the last checkpoint."""
    for terminal in (True, False):
        monkeypatch.setattr("os.isatty", lambda _, terminal=terminal: terminal)
        with loop.interruptible() as asked:
            signal.raise_signal(signal.SIGINT)
            assert asked()
        assert ("stopping after this step" in capfd.readouterr().err) == terminal


def test_examples_of_the_help_stand_on_lines_of_their_own_with_their_brackets() -> None:
    said = CliRunner().invoke(cli.app, ["exclude", "--help"], terminal_width=200, env={"COLUMNS": "200"}).output
    assert "$ terrasieve exclude in.parquet -o out.parquet min_px=64 'bands=[red, green, blue]'\n" in re.sub(
        " +\n", "\n", said
    )
    listed = [name for commands in cli.COMMANDS.values() for name, _ in commands]
    assert len(listed) == len(set(listed)) == len(cli.app.registered_commands)


def test_a_recipe_of_another_command_is_known_for_what_it_is(tmp_path: Path) -> None:
    for recipe, other in (("mae_vit_tiny_ucmerced", "pretrain"), ("rvit_tiny_ucmerced", "adapt")):
        said = refused("curate", ROOT / "recipes" / f"{recipe}.yaml", "-o", tmp_path / "curated")
        assert f"is one of terrasieve {other}" in said
    assert not (tmp_path / "curated").exists()


def test_recipes_do_not_wait_for_scikit_learn() -> None:
    """It took a quarter of the time from a command to its first word."""
    code = "import sys; import terrasieve.recipe; assert 'sklearn' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_a_folder_of_data_that_is_not_there_is_no_empty_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert top(tmp_path) == tmp_path
    with pytest.raises(UserError, match="--data: there is no folder"):
        top(tmp_path / "nowhere")
    monkeypatch.setenv("TERRASIEVE_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="TERRASIEVE_DATA: there is no folder"):
        top(None)


def test_index_names_the_bands_that_a_recipe_has_to_name(tmp_path: Path, small_manifest: Path) -> None:
    bands = manifest.read(small_manifest)["bands"][0].as_py()
    said = done("index", small_manifest.parent / "images", "-o", tmp_path / "images.parquet", "--workers", "1")
    assert f"bands: {', '.join(bands)} (24)" in said
