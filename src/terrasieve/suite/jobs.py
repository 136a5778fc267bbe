"""Jobs of a suite: what is computed in a process of its own, and known by a key when it was done before.

After ``data``, before ``run``. Protocols on frozen features share one pass over a task's images; every training, by
protocol and seed, is a job of its own.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from terrasieve.suite.data import placed
from terrasieve.suite.settings import FROZEN, Protocol, Suite, Task


@dataclass(frozen=True)
class Job:
    """A task scored under protocols that go together.

    Attributes:
        name: of the job's files.
        task: of the suite.
        spec: where its images are (``data.placed``); "" = nowhere here.
        protocols: one that trains, or several on frozen features.
        seed: of everything drawn.
        key: of encoder, task, protocols and seed; the same key is the same result.
        absent: why it cannot be done here.
    """

    name: str
    task: Task
    spec: str
    protocols: tuple[Protocol, ...]
    seed: int
    key: str
    absent: str = ""


def plan(suite: Suite, protocols: dict[str, Protocol], encoder: str, data: Path, untrainable: str = "") -> list[Job]:
    """List the jobs of a suite in the order of its tasks; those that cannot be done here too.

    Args:
        suite: the suite.
        protocols: by the names in its tasks.
        encoder: what tells it from others (``encoders.identity``).
        data: folder of data.
        untrainable: why the encoder cannot be trained on; "" = it can.
    """
    jobs = []
    for task in suite.tasks:
        spec, absent = placed(task, data)
        for group, seeds in _groups(suite, task, protocols):
            why = absent or untrainable * (group[0].kind not in FROZEN)
            for seed in seeds:
                words = "-".join([task.name, *(each.name for each in group)])
                key = _key(encoder, spec, task, group, seed)
                name = f"{words}-seed{seed}-{key[:6]}"
                jobs.append(Job(name, task, spec, tuple(group), seed, key, why))
    return jobs


def _groups(suite: Suite, task: Task, protocols: dict[str, Protocol]) -> list[tuple[list[Protocol], tuple[int, ...]]]:
    """Put the protocols of a task together that share a pass over its images, and say with which seeds."""
    groups: list[tuple[list[Protocol], tuple[int, ...]]] = []
    seeds = task.seeds or suite.seeds
    for name in task.protocols:
        protocol = protocols[name]
        if protocol.kind not in FROZEN:
            groups.append(([protocol], seeds))
            continue
        together = [
            group
            for group, _ in groups
            if all(each.kind in FROZEN and each.kind != protocol.kind and each.pool == protocol.pool for each in group)
        ]
        if together:
            together[0].append(protocol)
        else:
            groups.append(([protocol], seeds[:1]))
    return groups


def _key(encoder: str, spec: str, task: Task, group: list[Protocol], seed: int) -> str:
    """Hash everything that a result depends on."""
    about: dict[str, Any] = {"encoder": encoder, "spec": spec, "seed": seed}
    without = {"published", "metric", "protocols", "seeds"} | ({"overrides"} if group[0].kind in FROZEN else set())
    about["task"] = task.model_dump(mode="json", exclude=without)
    about["protocols"] = [each.model_dump(mode="json", exclude={"source", "differs"}) for each in group]
    return hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=8).hexdigest()
