"""Waiting: counted before every batch but the first, by a clock that the test holds; what a run tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from terrasieve.batch import Batch
from terrasieve.pretrain import pretrain
from terrasieve.recipe import Recipe
from terrasieve.train import waiting
from terrasieve.train.log import read_log
from terrasieve.watch import pretrain_watched


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def slow(clock: Clock, seconds: list[float]) -> Iterator[Batch]:
    for second in seconds:
        clock.now += second
        yield cast(Batch, object())


def test_the_time_before_each_batch_but_the_first_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(waiting, "time", clock)
    counted = waiting.Waiting(torch.device("cpu"))
    taken = []
    for _ in counted.watched(slow(clock, [50.0, 2.0, 0.0, 3.0])):
        clock.now += 7.0  # the step
        taken.append(counted.taken_s())
    assert taken == [0.0, 2.0, 0.0, 3.0] and counted.taken_s() == 0


def test_on_cuda_a_wait_counts_only_if_the_device_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, done = Clock(), iter([False, True, False])
    monkeypatch.setattr(waiting, "time", clock)

    class Event:
        def record(self) -> None: ...

        def query(self) -> bool:
            return next(done)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    counted = waiting.Waiting(torch.device("cuda"))
    for _ in counted.watched(slow(clock, [50.0, 2.0, 4.0, 8.0])):
        pass
    assert counted.taken_s() == 4.0


@pytest.mark.parametrize(
    ("share", "workers", "cores", "said", "also"),
    [
        (0.62, 0, 2, "loader.workers=2", False),  # .62 of reading to .38 of training
        (0.4, 0, 8, "loader.workers=1", False),
        (0.6, 1, 16, "loader.workers=3", False),
        (0.75, 4, 16, "loader.workers=16", False),
        (0.9, 4, 16, "loader.workers=16", True),  # 40 would be needed
        (0.9, 16, 16, None, True),
    ],
)
def test_advice_is_what_reading_at_the_models_pace_needs(
    share: float, workers: int, cores: int, said: str | None, also: bool
) -> None:
    text = waiting.advice(share, workers, cores)
    assert f"{100 * share:.0f} % of the time, with loader.workers={workers} on {cores} core(s)" in text
    assert (f"give {said}" in text) if said else ("give" not in text)
    assert ("terrasieve shard" in text) == also


def test_a_run_that_waits_says_so_once_and_keeps_it(
    tiny: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from terrasieve.data.images import Images

    read, clock = Images.read, Clock()

    def slowly(self: Images, *given: Any) -> Any:
        clock.now += 1.0
        return read(self, *given)

    monkeypatch.setattr(Images, "read", slowly)
    monkeypatch.setattr(waiting, "time", clock)
    settings = tiny(steps=4, loader={"workers": 0}, log={"every": 1, "picture_every": 0})
    assert pretrain_watched(settings, tmp_path / "run")
    assert capsys.readouterr().err.count("training waits for images") == 1
    lines, _ = read_log(tmp_path / "run/log.jsonl")
    assert lines[0]["data_wait"] == 0 and all(line["data_wait"] > waiting.MUCH for line in lines[1:])
    page = (tmp_path / "run/report.html").read_text()
    assert "Waiting for images" in page


@pytest.mark.parametrize("batch_size", [24, 32])
def test_a_batch_that_repeats_images_is_told(tiny: Callable[..., Recipe], tmp_path: Path, batch_size: int) -> None:
    notes: list[str] = []
    pretrain(tiny(steps=1, batch_size=batch_size), tmp_path / "run", on_note=notes.append)
    assert [note for note in notes if "batch repeats some" in note] == (
        ["batch_size 32 is more than the 24 images: a batch repeats some"] if batch_size == 32 else []
    )
