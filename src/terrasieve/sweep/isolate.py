"""Isolation: functions run side by side, each in a process of its own that dies alone.

First stage of the sweep, and it imports nothing heavy: a server process (multiprocessing's forkserver) imports torch
and the rest once, and every process is forked from it, so that a run of seconds does not pay seconds of imports.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, forkserver
from pathlib import Path
from typing import Any

from terrasieve.errors import UserError

PRELOADED = ("terrasieve.sweep.run", "terrasieve.cli", "torch.utils.tensorboard", "torch._dynamo")
POLL_S = 0.2
LAST_WORDS = 2000  # characters of a process's output that are kept of one that gave no reason


@dataclass(frozen=True)
class Task:
    """A call to be made in a process of its own.

    Attributes:
        name: for messages.
        function: at the top level of a module.
        arguments: can be pickled.
        output: file that its standard output and error go to; it is appended to.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    output: Path


@dataclass(frozen=True)
class Ending:
    """How a task ended.

    Attributes:
        state: "done", "failed" or "interrupted".
        message: why it failed; "" otherwise.
        seconds: wall time, process start included.
        result: what the function returned; None unless done.
    """

    state: str
    message: str
    seconds: float
    result: Any = None


def start_server() -> None:
    """Start the server and return at once; it goes on importing. One thread each for whatever its processes compute."""
    given = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    os.environ.update(dict.fromkeys(given, "1"))
    try:
        multiprocessing.get_context("forkserver").set_forkserver_preload(list(PRELOADED))
        forkserver.ensure_running()
    finally:
        for name, value in given.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def run_all(
    tasks: Sequence[Task],
    side_by_side: int,
    stopped: Callable[[], bool] = lambda: False,
    on_end: Callable[[Task, Ending], None] = lambda task, ending: None,
) -> bool:
    """Run tasks in their order, several at a time.

    Args:
        tasks: are started in this order.
        side_by_side: how many at a time.
        stopped: asked often; once true, nothing more is started and what runs is told to stop (SIGINT) and awaited.
        on_end: called as each ends, here in this process.

    Returns:
        Whether all were run to an end of their own.
    """
    start_server()
    waiting, told = deque(tasks), False
    running: list[_Process] = []
    try:
        while running or (waiting and not stopped()):
            while waiting and len(running) < side_by_side and not stopped():
                running.append(_Process(waiting.popleft()))
            if stopped() and not told:
                told = True
                for process in running:
                    process.interrupt()
            connection.wait([process.answer for process in running], timeout=POLL_S)
            for process in [process for process in running if process.ended]:
                running.remove(process)
                on_end(process.task, process.ending())
    finally:
        for process in running:  # a second Ctrl-C, or an error in on_end: none may live on
            process.kill()
    return not waiting and not told


def parent_is_gone() -> bool:
    """Tell, inside a task, whether the process that started it has died."""
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


class _Process:
    """A running task."""

    def __init__(self, task: Task) -> None:
        context = multiprocessing.get_context("forkserver")
        self.task, self.began = task, time.monotonic()
        self.answer, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_serve, args=(theirs, task))
        self.process.start()
        theirs.close()
        self.sent: tuple[str, str, Any] | None = None

    @property
    def ended(self) -> bool:
        """Whether it has answered or died; the answer is read at once, since a long one blocks its sender."""
        if not self.answer.poll():
            return False
        try:
            self.sent = self.answer.recv()
        except EOFError:
            self.sent = None
        self.process.join()
        return True

    def ending(self) -> Ending:
        seconds = time.monotonic() - self.began
        if self.sent is not None:
            state, message, result = self.sent
            return Ending(state, message, seconds, result)
        code = self.process.exitcode or 0
        if code >= 0:
            died = f"the process ended with {code}"
        else:
            hint = "; was memory short?" if -code == signal.SIGKILL else ""
            died = f"the process was killed by {signal.Signals(-code).name}{hint}"
        words = self.task.output.read_text(errors="replace")[-LAST_WORDS:].strip() if self.task.output.exists() else ""
        return Ending("failed", f"{died}{': ' if words else ''}{words}", seconds)

    def interrupt(self) -> None:
        if self.process.is_alive() and self.process.pid:
            os.kill(self.process.pid, signal.SIGINT)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            if self.process.pid:
                os.killpg(self.process.pid, signal.SIGKILL)  # it leads a session: its loader's workers go with it
        self.process.kill()
        self.process.join()


def _serve(answer: connection.Connection, task: Task) -> None:
    """Make the call, in the new process, and send how it ended."""
    os.setsid()  # a terminal's Ctrl-C reaches the parent alone, which passes it on once
    task.output.parent.mkdir(parents=True, exist_ok=True)
    with task.output.open("ab") as output:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(output.fileno(), stream.fileno())
    import torch

    torch.set_num_threads(1)
    try:
        sent: tuple[str, str, Any] = ("done", "", task.function(*task.arguments))
    except KeyboardInterrupt:
        sent = ("interrupted", "", None)
    except UserError as error:
        sent = ("failed", str(error), None)
    except BaseException as error:
        traceback.print_exc()
        sent = ("failed", f"{type(error).__name__}: {error} (traceback: {task.output})", None)
    sys.stdout.flush()
    sys.stderr.flush()
    answer.send(sent)
