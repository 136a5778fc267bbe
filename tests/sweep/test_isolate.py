"""Processes that die alone: every way to end, how many at a time, and what happens when it is to stop."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from terrasieve.errors import UserError
from terrasieve.sweep.isolate import Ending, Task, run_all


def divide(a: int, b: int) -> float:
    sys.stdout.write(f"dividing in {os.getpid()}\n")
    return a / b


def refuse() -> None:
    raise UserError("no such folder")


def die(how: signal.Signals) -> None:
    os.write(2, b"last words")
    os.kill(os.getpid(), how)
    time.sleep(30)


def leave() -> None:
    os._exit(3)


def stamp(path: Path, seconds: float) -> None:
    began = time.monotonic()
    time.sleep(seconds)
    path.write_text(f"{began} {time.monotonic()}")


def wait_for_interrupt(path: Path) -> str:
    try:
        path.write_text(f"{os.getpid()} ")
        time.sleep(60)
    except KeyboardInterrupt:
        path.write_text("interrupted")
        raise
    return "never"


def wait_for(path: Path) -> int:
    while not (path.exists() and path.read_text().endswith(" ")):
        time.sleep(0.05)
    return int(path.read_text())


def endings(tasks: list[Task], side_by_side: int = 2) -> dict[str, Ending]:
    found: dict[str, Ending] = {}
    assert run_all(tasks, side_by_side, on_end=lambda task, ending: found.setdefault(task.name, ending))
    return found


def test_every_way_to_end(tmp_path: Path) -> None:
    tasks = [
        Task("good", divide, (6, 3), tmp_path / "good.txt"),
        Task("bad", divide, (1, 0), tmp_path / "bad.txt"),
        Task("user", refuse, (), tmp_path / "user.txt"),
        Task("killed", die, (signal.SIGKILL,), tmp_path / "killed.txt"),
        Task("segfault", die, (signal.SIGSEGV,), tmp_path / "segfault.txt"),
        Task("left", leave, (), tmp_path / "left.txt"),
    ]
    made = endings(tasks)
    assert (made["good"].state, made["good"].result) == ("done", 2.0)
    assert "dividing in" in (tmp_path / "good.txt").read_text()
    assert str(os.getpid()) not in (tmp_path / "good.txt").read_text()
    assert made["bad"].state == "failed" and made["bad"].message.startswith("ZeroDivisionError: division by zero")
    assert "Traceback" in (tmp_path / "bad.txt").read_text()
    assert (made["user"].state, made["user"].message) == ("failed", "no such folder")
    assert "SIGKILL; was memory short?: last words" in made["killed"].message
    assert "SIGSEGV" in made["segfault"].message
    assert made["left"].message == "the process ended with 3"
    assert all(ending.seconds > 0 for ending in made.values())


@pytest.mark.parametrize("side_by_side", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_as_many_at_a_time_as_asked(tmp_path: Path, side_by_side: int) -> None:
    files = [tmp_path / f"{number}" for number in range(4)]
    endings([Task(path.name, stamp, (path, 0.4), tmp_path / "output") for path in files], side_by_side)
    times = [tuple(map(float, path.read_text().split())) for path in files]
    together = max(sum(a <= at < b for a, b in times) for at, _ in times)
    assert together == side_by_side


def test_stopping_interrupts_what_runs_and_starts_no_more(tmp_path: Path) -> None:
    running, waiting = tmp_path / "running", tmp_path / "waiting"
    found: dict[str, Ending] = {}
    tasks = [Task(path.name, wait_for_interrupt, (path,), tmp_path / "output") for path in (running, waiting)]
    whole = run_all(tasks, 1, running.exists, lambda task, ending: found.setdefault(task.name, ending))
    assert not whole and found["running"].state == "interrupted" and list(found) == ["running"]
    assert running.read_text() == "interrupted" and not waiting.exists()


def test_nothing_survives_an_error_here(tmp_path: Path) -> None:
    pids: list[int] = []

    def fail(task: Task, ending: Ending) -> None:
        pids.append(ending.result)
        raise ZeroDivisionError

    slow = tmp_path / "slow"
    tasks = [Task("slow", wait_for_interrupt, (slow,), tmp_path / "output")]
    tasks += [Task("quick", wait_for, (slow,), tmp_path / "output")]
    with pytest.raises(ZeroDivisionError):
        run_all(tasks, 2, on_end=fail)
    assert not Path(f"/proc/{pids[0]}").exists() and slow.read_text() != "interrupted"
