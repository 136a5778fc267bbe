"""Near pairs in a run's report: how many pairs of a batch lie near each other, beside the other headline numbers.

Between ``run_folder`` and ``page``; the numbers are those of ``data.batch_survey``, written before training.
"""

from __future__ import annotations

import json

from terrasieve.report.run_folder import Run, number


def near_pairs(run: Run) -> list[tuple[str, str, str]]:
    """Return the headline (name, value, note), none of a run whose batches' places do not matter.

    What cannot be read is added to ``run.problems``.
    """
    path = run.folder / "batches.json"
    if not path.is_file():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        share, within_km = number(found["pairs_within"]), number(found["within_km"])
        name = str(found["batches"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        run.problems.append(f"batches.json cannot be read: {error}")
        return []
    if share is None or within_km is None:
        run.problems.append("batches.json cannot be read: not numbers")
        return []
    return [("Near pairs", f"{share:.1%}", f"of {name} batches' pairs, within {within_km:,g} km")]
