"""The review page without a server: one file with up to some hundreds of pairs in it, to be sent and opened anywhere.

Decisions stay in the browser (localStorage) until they are downloaded as lines of ``decisions.jsonl``.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from markupsafe import Markup

from terrasieve.files import written_aside
from terrasieve.imagery.unreadable import UnreadableImage
from terrasieve.report.pair_pictures import thumbnail
from terrasieve.report.render import data_uri, source
from terrasieve.report.review_details import details, files
from terrasieve.report.review_pairs import Filter, ReviewPairs
from terrasieve.report.review_server import SCRIPTS, STYLES, look, page

LONGEST_PX = 384


def write_static(
    review: ReviewPairs, name: str, path: Path, most: int = 300, tick: Callable[[int, int], None] = lambda *_: None
) -> tuple[int, int]:
    """Write the undecided pairs of the review band, those most alike first, as one HTML file.

    Args:
        review: what is reviewed.
        name: of it, for the page's title.
        path: of the page.
        most: pairs that it holds at most; about 100 kB each.
        tick: told how many are done, and of how many.

    Returns:
        Pairs held, and pairs left out.
    """
    order, _ = review.order(Filter(undecided=True))
    numbers = [int(number) for number in order[:most]]
    pairs, thumbnails = [], dict[str, str]()
    for done, number in enumerate(numbers, 1):
        shown = look(review, number, LONGEST_PX)
        said = details(review, number, shown)
        said["pictures"] = {name: data_uri("image/jpeg", content) for name, content in files(shown).items()}
        for other in said["others"]:
            if other["id"] not in thumbnails and (row := review.find(other["id"])) is not None:
                thumbnails[other["id"]] = _thumbnail(row)
        pairs.append(said)
        tick(done, len(numbers))
    key = hashlib.blake2b("".join(said["left"]["id"] + said["right"]["id"] for said in pairs).encode(), digest_size=8)
    held = {"key": key.hexdigest(), "pairs": pairs, "thumbnails": thumbnails}
    script, style = source(*SCRIPTS), source(*STYLES)
    html = page(
        review,
        name,
        script=Markup(script),
        style=Markup(style),
        held_json=Markup(json.dumps(held, allow_nan=False).replace("<", "\\u003c")),
        policy=f"default-src 'none'; img-src data:; script-src '{_sha256(script)}'; style-src '{_sha256(style)}'",
        held=len(numbers),
        left_out=len(order) - len(numbers),
    )
    with written_aside(path) as aside:
        aside.write_text(html, encoding="utf-8")
    return len(numbers), len(order) - len(numbers)


def _thumbnail(row: dict[str, Any]) -> str:
    try:
        return data_uri("image/jpeg", thumbnail(row))
    except UnreadableImage:
        return "data:,"


def _sha256(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
