"""The page of a suite and its table as Markdown, LaTeX and JSON, all made of one content (``suite.table``).

Last stage of a suite. The page is one HTML file without scripts, like a run's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from terrasieve.files import written_aside
from terrasieve.report.render import write_page

Row = dict[str, Any]
HEADER = ("task", "protocol", "metric", "score", "untrained", "published", "seeds", "test", "time", "memory")
NUMBERS = ("score", "untrained", "seeds", "test", "time", "memory")
SHORT = {"overall_accuracy": "OA", "macro_accuracy": "AA", "miou": "mIoU", "f1_macro": "mF1"}
SHORT |= {"ap_macro": "AP macro", "ap_micro": "AP micro", "ap50": "AP50", "jaccard_weighted": "Jaccard weighted"}
SCORED = ("done", "partly")
MISSING = {"failed": "Failed", "waiting": "Not done yet", "absent": "Left out"}


def write_suite(folder: Path, content: dict[str, Any]) -> Path:
    """Write ``report.html``, ``table.md``, ``table.tex`` and ``table.json``; return the page's path.

    Args:
        folder: of the suite.
        content: from ``suite.table.content_of``.
    """
    for name, text in (
        ("table.json", json.dumps(content, indent=1) + "\n"),
        ("table.md", markdown(content)),
        ("table.tex", latex(content)),
    ):
        with written_aside(folder / name) as aside:
            aside.write_text(text, encoding="utf-8")
    rows = content["rows"]
    shown = [row for row in rows if row["state"] in SCORED]
    places = columns(shown)
    return write_page(
        "suite.html.j2",
        folder / "report.html",
        content=content,
        facts=_facts(content, shown),
        drawn=[_drawn(row) for row in shown],
        header=[(HEADER[place], HEADER[place] in NUMBERS) for place in places],
        table=[[(cells(row)[place], HEADER[place]) for place in places] for row in shown],
        numbers=NUMBERS,
        missing=[(title, missing(rows, state)) for state, title in MISSING.items()],
        notes=notes(shown),
        environment=[(key.replace("_", " "), _words(value)) for key, value in content["environment"].items()],
    )


def markdown(content: dict[str, Any]) -> str:
    """Lay a suite out as Markdown: the table, what is not in it, notes, and where the protocols are from."""
    rows = content["rows"]
    shown = [row for row in rows if row["state"] in SCORED]
    places = columns(shown)
    lines = [f"# {content['suite']}: {content['encoder']}", "", _caption(content), ""]
    if shown:
        lines.append(_piped([HEADER[place] for place in places]))
        lines.append(_piped(["---:" if HEADER[place] in NUMBERS else "---" for place in places]))
        lines += [_piped([cells(row)[place] for place in places]) for row in shown]
    else:
        lines.append("Nothing yet.")
    for state, title in MISSING.items():
        listed = missing(rows, state)
        if listed:
            lines += ["", f"## {title}", "", *(f"- {name}: {why}" if why else f"- {name}" for name, why in listed)]
    told = notes(shown)
    lines += ["", "## Notes", "", *(f"- {task}: {note}" for task, note in told)] if told else []
    lines += ["", "## Protocols", ""]
    for each in content["protocols"]:
        lines.append(
            f"- **{each['name']}**: {each['source']}.{' Differs: ' + each['differs'] if each['differs'] else ''}"
        )
    return "\n".join(lines) + "\n"


def latex(content: dict[str, Any]) -> str:
    """Lay the finished rows out as a LaTeX table (booktabs), the published figures in a column of their own."""
    shown = [row for row in content["rows"] if row["state"] in SCORED]
    places = [place for place in columns(shown) if HEADER[place] not in ("time", "memory", "test")]
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}", "\\centering",
        f"\\caption{{{escaped(_caption(content))}}}",
        f"\\begin{{tabular}}{{{''.join('r' if HEADER[place] in NUMBERS else 'l' for place in places)}}}",
        "\\toprule",
        " & ".join(HEADER[place] for place in places) + " \\\\",
        "\\midrule",
    ]  # fmt: skip
    lines += [" & ".join(escaped(cells(row)[place]) for place in places) + " \\\\" for row in shown]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", "\\end{table}"]) + "\n"


def escaped(text: str) -> str:
    """Return text in which LaTeX sees no markup."""
    special = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "±": "$\\pm$"}
    special |= {"·": "$\\cdot$"} | {sign: f"\\{sign}" for sign in "&%$#_{}"}
    return "".join(special.get(letter, letter) for letter in text)


def _caption(content: dict[str, Any]) -> str:
    return (
        f"{content['about']} "
        * bool(content["about"])
        + f"Encoder {content['encoder']}. Per cent; brackets: 95 % bootstrap intervals over the test samples; ±: "
        "standard deviation between seeds. Published figures are those of the papers named, not ours."
    )


def columns(shown: Sequence[Row]) -> list[int]:
    """Return the places in ``HEADER`` of the columns that say something of any of these rows."""
    told = [cells(row) for row in shown]
    return [place for place in range(len(HEADER)) if any(row[place] for row in told)]


def missing(rows: Sequence[Row], state: str) -> list[tuple[str, str]]:
    """List rows in a state that is none of a score: task and protocols, and why; protocols of one reason together."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["state"] == state:
            found.setdefault((row["task"], row["message"]), []).append(row["protocol"])
    return [(f"{task}: {', '.join(protocols)}", why) for (task, why), protocols in found.items()]


def notes(shown: Sequence[Row]) -> list[tuple[str, str]]:
    """List what is to be known of the scores, each sentence once: task, sentence."""
    return list(dict.fromkeys((row["task"], note) for row in shown for note in row["notes"]))


def cells(row: Row) -> list[str]:
    """Return a row's cells, in the order of ``HEADER``."""
    return [
        row["task"],
        row["protocol"],
        SHORT.get(row["metric"], row["metric"].replace("_", " ")),
        _value(row["score"]),
        _value(row["untrained"], interval=False),
        _published(row),
        f"{len(row['seeds'])}" + (f" of {len(row['seeds_planned'])}" if row["state"] == "partly" else ""),
        f"{row['score']['count']:,}",
        _duration(row["seconds"]),
        f"{row['memory_mb']:,.0f} MB",
    ]


def _value(found: dict[str, Any] | None, *, interval: bool = True) -> str:
    if found is None:
        return ""
    text = f"{100 * found['value']:.1f}"
    text += f" ±{100 * found['deviation']:.1f}" if found["deviation"] is not None else ""
    one = found["count"] < 2  # of which no interval can be told
    return text + (f" [{100 * found['low']:.1f}, {100 * found['high']:.1f}]" if interval and not one else "")


def _published(row: Row) -> str:
    told = []
    for each in row["published"]:
        note = f", {each['note']}" if each["note"] else ""
        figures = ", ".join(f"{value:.2f} {model}" for model, value in each["values"].items())
        told.append(f"{figures} ({each['paper']}, {each['table']}, {each['metric']}{note})")
    return "; ".join(told)


def _drawn(row: Row) -> dict[str, Any]:
    """Return where a row's marks stand on an axis from 0 to 100."""
    score, untrained = row["score"], row["untrained"]
    marks = [
        (value, f"{model}: {value:g} ({each['paper']})")
        for each in row["published"]
        for model, value in each["values"].items()
    ]
    return {
        "task": row["task"],
        "protocol": row["protocol"],
        "metric": SHORT.get(row["metric"], row["metric"].replace("_", " ")),
        "value": 100 * score["value"],
        "single": score["count"] < 2,
        "low": 100 * score["low"],
        "high": 100 * score["high"],
        "untrained": None if untrained is None else 100 * untrained["value"],
        "published": marks,
    }


def _facts(content: dict[str, Any], shown: Sequence[Row]) -> list[tuple[str, str, str]]:
    """Return the headline: (name, value, note)."""
    rows = content["rows"]
    memory = max((row["memory_mb"] for row in shown), default=0.0)
    left_out = sum(row["state"] == "absent" for row in rows)
    return [
        ("Rows", f"{len(shown)} of {len(rows)}", "tasks x protocols scored"),
        ("Left out", f"{left_out} of {len(rows)}", "no images here, or not for this encoder"),
        ("Time", _duration(content["seconds"]), "of all jobs together"),
        ("Memory", f"{memory:,.0f} MB", "peak of the largest job"),
    ]


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )


def _piped(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    return "" if value is None else str(value)
