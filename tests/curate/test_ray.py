"""On a Ray of two workers parts come out as they do here, and a lost worker costs its own part alone."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

from terrasieve.curate.engine import LOST, Engine, Local, engine_of
from terrasieve.curate.shards import ShardSettings, export_shards
from terrasieve.curate.step import Work
from terrasieve.errors import UserError
from terrasieve.imagery.unreadable import UnreadableImage

WITHOUT = "Ray is not installed: uv sync --extra ray"


def test_without_ray_the_engine_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'terrasieve\[ray\]'"):
        engine_of("ray")
    with pytest.raises(UserError, match="no engine 'dask'; there are local and ray"):
        engine_of("dask")
    assert isinstance(engine_of("local", 2), Local)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Engine]:
    """A Ray of two workers on this machine, started as a user's is."""
    if find_spec("ray") is None:
        pytest.skip(WITHOUT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # the functions below
        yield engine_of("ray", 2)
        import_module("ray").shutdown()


class Counted(NamedTuple):
    """A part that notes each time it is begun."""

    number: int
    folder: str

    def begun(self) -> int:
        with Path(self.folder, f"{self.number}").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return len(Path(self.folder, f"{self.number}").read_text().splitlines())


def square(part: int) -> int:
    return part * part


def dies(part: Counted) -> int:
    """Part 3 ends its worker every time, part 5 the first time."""
    times = part.begun()
    if part.number == 3 or (part.number == 5 and times == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)
    return part.number * part.number


def needs_another_package(part: int) -> int:
    raise ModuleNotFoundError("No module named 'terrasieve'")


def refuses(part: int) -> int:
    if part == 2:
        raise UnreadableImage("a.tif", "truncated", "half of it")
    return part


@pytest.mark.slow
def test_results_are_those_of_this_machine(cluster: Engine) -> None:
    assert dict(cluster.run(square, range(40))) == dict(Local(1).run(square, range(40)))
    assert dict(cluster.run(square, [])) == {}
    with pytest.raises(UnreadableImage, match="truncated: half of it"):
        dict(cluster.run(refuses, range(4)))
    with pytest.raises(UserError, match="lacks terrasieve or a part of it"):
        dict(cluster.run(needs_another_package, [1]))


@pytest.mark.slow
def test_a_lost_worker_costs_its_part_alone(cluster: Engine, tmp_path: Path) -> None:
    parts = [Counted(number, str(tmp_path)) for number in range(12)]
    found = dict(cluster.run(dies, parts))
    assert found == {n: n * n if n != 3 else LOST for n in range(12)}
    times = {int(path.name): len(path.read_text().splitlines()) for path in tmp_path.iterdir()}
    assert times.pop(3) > 1 and times.pop(5) == 2
    assert set(times.values()) == {1}, "the others were done once"


@pytest.mark.slow
def test_shards_from_ray_are_the_same_bytes(cluster: Engine, small_manifest: Path, tmp_path: Path) -> None:
    for name, engine in (("local", Local(1)), ("ray", cluster)):
        export_shards(small_manifest, tmp_path / name, ShardSettings(shard_mb=0.05), Work(tmp_path, engine))
    local, ray = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("local", "ray"))
    assert local == ray and len(local) > 5
