"""Times: when a scene was taken, as the names of Sentinel products have it. Used by the entries of Sentinel data."""

from __future__ import annotations

import re
from datetime import UTC, datetime


def time_in(name: str) -> datetime | None:
    """Return the first time in a name, written 20170613T101031 or 20191105, UTC; None = there is none."""
    found = re.search(r"(?<![0-9])(20[0-9]{6})(T[0-9]{6})?(?![0-9])", name)
    if found is None:
        return None
    try:
        return datetime.strptime(found[1] + (found[2] or "T000000"), "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return None
