"""Table of a suite: a row per task and protocol, from the lines of finished jobs, the published figures beside it.

Between ``jobs`` and ``report.suite_page``, which writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from terrasieve.evaluate.protocol import FINE_TUNED, RANDOM_INIT, RAW_PIXELS
from terrasieve.suite.jobs import Job
from terrasieve.suite.settings import FROZEN, Protocol

Line = dict[str, Any]
Row = dict[str, Any]


def content_of(
    jobs: Sequence[Job], protocols: dict[str, Protocol], lines: dict[str, Line], about: dict[str, Any]
) -> dict[str, Any]:
    """Return everything that the tables and the page show, as JSON values.

    Args:
        jobs: all of the suite.
        protocols: by the names in its tasks.
        lines: of finished jobs, by key.
        about: suite, encoder, environment.
    """
    rows: list[Row] = []
    for task in dict.fromkeys(job.task.name for job in jobs):
        own = [job for job in jobs if job.task.name == task]
        rows += [_row(own, protocols[name], lines) for name in own[0].task.protocols]
    used = {job_protocol.name: job_protocol for job in jobs for job_protocol in job.protocols}
    told = [
        {"name": each.name, "kind": each.kind, "source": each.source, "differs": each.differs} for each in used.values()
    ]
    seconds = sum(lines[job.key]["seconds"] for job in jobs if job.key in lines)
    return about | {"rows": rows, "protocols": told, "seconds": seconds}


def _row(jobs: Sequence[Job], protocol: Protocol, lines: dict[str, Line]) -> Row:
    """Return the row of a task under a protocol, over its seeds."""
    own = [job for job in jobs if protocol in job.protocols]
    task = own[0].task
    found = [lines[job.key] for job in own if job.key in lines]
    done = [line for line in found if line["state"] == "done"]
    kind = protocol.kind if protocol.kind in FROZEN else FINE_TUNED
    scores = [[score for score in line["scores"] if score["protocol"] == kind] for line in done]
    names = list(dict.fromkeys(score["metric"] for some in scores for score in some))
    metric = task.metric or (names[0] if names else "")
    row: Row = {
        "task": task.name,
        "data": task.data or (task.samples.folder if task.samples else ""),
        "protocol": protocol.name,
        "metric": metric,
        "state": "done" if done and len(done) == len(own) else "partly" if done else _state(own, found),
        "message": next((line["message"] for line in found if line["state"] == "failed"), own[0].absent),
        "seeds": [line["seed"] for line in done],
        "seeds_planned": [job.seed for job in own],
        "seconds": sum(line["seconds"] for line in done) if done else None,
        "memory_mb": max((line["memory_mb"] for line in done), default=None),
        "notes": list(dict.fromkeys(note for line in done for note in line["notes"])),
        "published": [
            each.model_dump(mode="json") for each in task.published if each.protocol in (None, protocol.name)
        ],
        "metrics": {name: _estimate(scores, name) for name in names},
        "score": _estimate(scores, metric),
        "untrained": _estimate(scores, metric, RANDOM_INIT),
        "raw_pixels": _estimate(scores, metric, RAW_PIXELS),
    }
    if done and row["score"] is None:
        row |= {"state": "failed", "message": f"metric {metric!r} is not one of this task: {', '.join(names)}"}
    return row


def _state(jobs: Sequence[Job], lines: Sequence[Line]) -> str:
    if jobs[0].absent:
        return "absent"
    return "failed" if any(line["state"] == "failed" for line in lines) else "waiting"


def _estimate(
    scores: Sequence[Sequence[dict[str, Any]]], metric: str, encoder: str | None = None
) -> dict[str, Any] | None:
    """Return a metric over seeds: mean, mean ends of the bootstrap intervals, deviation between seeds, test samples.

    Args:
        scores: of each seed.
        metric: which.
        encoder: of which; None = the one that is evaluated.
    """
    given = [score for some in scores for score in some if score["metric"] == metric]
    if encoder is None:  # an encoder that has only random weights stands in the place of the trained one
        trained = [score for score in given if score["encoder"] not in (RANDOM_INIT, RAW_PIXELS)]
        chosen = trained or [score for score in given if score["encoder"] == RANDOM_INIT]
    else:
        chosen = [score for score in given if score["encoder"] == encoder]
    if not chosen:
        return None
    values = [score["value"] for score in chosen]
    return {
        "value": fmean(values),
        "low": fmean(score["low"] for score in chosen),
        "high": fmean(score["high"] for score in chosen),
        "deviation": stdev(values) if len(values) > 1 else None,
        "count": chosen[0]["count"],
    }
