"""Decisions of a review: durable, whole, and one line each, whoever writes and whenever a writer is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from terrasieve.curate import decisions
from terrasieve.errors import UserError

WRITER = """
import sys
from pathlib import Path
from terrasieve.curate.decisions import append
for n in range(int(sys.argv[3])):
    append(Path(sys.argv[1]), f"{sys.argv[2]}{n}", "b" * 300, "both", sys.argv[2])
    print(n, flush=True)
"""


def test_last_one_wins_and_undo_removes(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    assert decisions.read(path) == {}
    for a, b, what in (
        ("1", "2", "left"),
        ("3", "4", "both"),
        ("1", "2", "right"),
        ("3", "4", "undo"),
        ("5", "6", "undo"),
    ):
        decisions.append(path, a, b, what, "tab")  # type: ignore[arg-type]
    assert decisions.read(path) == {("1", "2"): "right"}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["decision"] for line in lines] == ["left", "both", "right", "undo", "undo"]
    assert {line["tab"] for line in lines} == {"tab"} and all(line["time"].endswith("+00:00") for line in lines)


def test_read_from_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    assert decisions.read_from(path, 0) == ([], 0)
    decisions.append(path, "1", "2", "left", "tab")
    said, at = decisions.read_from(path, 0)
    assert said == [("1", "2", "left")] and at == path.stat().st_size
    decisions.append(path, "1", "2", "undo", "tab")
    assert decisions.read_from(path, at)[0] == [("1", "2", "undo")]


def test_a_cut_last_line_is_ignored_and_then_removed(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    decisions.append(path, "1", "2", "left", "tab")
    whole = path.read_bytes()
    for cut in range(1, len(whole) - 1):
        path.write_bytes(whole + whole[:cut])
        assert decisions.read(path) == {("1", "2"): "left"}
        decisions.append(path, "3", "4", "both", "tab")
        assert decisions.read(path) == {("1", "2"): "left", ("3", "4"): "both"}
        assert path.read_bytes().count(b"\n") == 2
    path.write_bytes(whole + whole.rstrip())  # whole but for its end, as an editor may leave it
    decisions.append(path, "3", "4", "both", "tab")
    assert len(decisions.read_from(path, 0)[0]) == 3


@pytest.mark.parametrize(
    "bad", [b"{}\n", b"nonsense\n", b'{"id_a": "1", "id_b": 2, "decision": "left"}\n', b"[1]\n", b"\xff\n"]
)
def test_another_bad_line_is_named(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "decisions.jsonl"
    decisions.append(path, "1", "2", "left", "tab")
    at = path.stat().st_size
    path.write_bytes(path.read_bytes() + bad + path.read_bytes())
    with pytest.raises(UserError, match=f"byte {at}"):
        decisions.read(path)


def test_several_processes_append_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, path, name, "100"], stdout=subprocess.DEVNULL) for name in "xyz"
    ]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert set(decisions.read(path)) == {(f"{name}{n}", "b" * 300) for name in "xyz" for n in range(100)}


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, path, "x", "100000"], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    writer.stdout.readline()
    time.sleep(0.1)
    os.kill(writer.pid, signal.SIGKILL)
    acknowledged = [int(line) for line in writer.stdout.read().split("\n") if line]
    writer.wait()
    kept = decisions.read(path)
    assert len(acknowledged) > 1 and {(f"x{n}", "b" * 300) for n in acknowledged} <= set(kept)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not kept"):
        decisions.append(tmp_path / "none" / "decisions.jsonl", "1", "2", "left", "tab")


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    script = (
        "import resource, signal, sys\nfrom pathlib import Path\nfrom terrasieve.curate.decisions import append\n"
        "from terrasieve.errors import UserError\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "path = Path(sys.argv[1])\nappend(path, '1', '2', 'left', 'tab')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20,) * 2)\n"
        "try:\n    append(path, '3', '4', 'left', 'tab')\nexcept UserError as error:\n    print(error)\n"
    )
    path = tmp_path / "decisions.jsonl"
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert "not kept" in done.stdout
    assert path.read_bytes().count(b"\n") == 1 and path.read_bytes().endswith(b"\n")
