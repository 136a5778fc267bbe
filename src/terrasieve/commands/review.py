"""The command ``terrasieve review``: a page on which a person decides the pairs that curation could not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from terrasieve.errors import UserError

if TYPE_CHECKING:
    from terrasieve.report.review_pairs import ReviewPairs

EXAMPLES = (
    "Examples: terrasieve review curated/  ·  terrasieve review curated/ --static  ·  "
    "terrasieve review --pairs overlaps.parquet --manifest ucm.parquet"
)


def review(
    folder: Annotated[Path | None, typer.Argument(help="Folder of a curation.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="Another table of pairs; default: FOLDER/pairs.parquet.")] = None,
    manifest: Annotated[
        list[Path] | None, typer.Option(help="Manifest of its images, several times if need be.")
    ] = None,
    decisions: Annotated[
        Path | None, typer.Option(help="File to append to; default: decisions.jsonl beside the pairs.")
    ] = None,
    port: Annotated[int, typer.Option(help="On 127.0.0.1; 0 = a free one.", min=0, max=65535)] = 0,
    static: Annotated[bool, typer.Option("--static", help="Write one page that needs no server.")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Page of --static; default: review.html beside the pairs.")
    ] = None,
    most: Annotated[int, typer.Option(help="Pairs in the page of --static, about 100 kB each.", min=1)] = 300,
) -> None:
    """Look at the pairs that are neither surely duplicates nor surely different, and decide them with a key each."""
    from terrasieve.display import counting, err, out
    from terrasieve.report.review_pairs import ReviewPairs
    from terrasieve.report.review_server import ReviewServer
    from terrasieve.report.review_static import write_static

    if folder is None and (pairs is None or not manifest):
        raise UserError("What is to be reviewed? Name the folder of a curation, or --pairs FILE and --manifest FILE.")
    table = pairs or (folder or Path()) / "pairs.parquet"
    manifests = manifest or [(folder or Path()) / "manifest.parquet"]
    with err.status("reading pairs and manifest"):
        found = ReviewPairs(table, manifests, decisions or table.parent / "decisions.jsonl")
    name = (folder or table).resolve().name
    if static:
        page = output or table.parent / "review.html"
        with counting("review", "pairs") as tick:
            held, left_out = write_static(found, name, page, most, tick)
        more = f", {left_out:,} more are left out (--most)" if left_out else ""
        out.print(f"{page}: {held:,} pairs to decide{more}", markup=False)
        return
    with ReviewServer(found, name, port) as server:
        out.print(f"{_state(found)}\n\n    {server.url}\n\nOpen it in a browser. Ctrl-C ends.", markup=False)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            out.print(f"\n{_state(found)}", markup=False)


def _state(found: ReviewPairs) -> str:
    from terrasieve.report.review_pairs import Filter

    found.refresh()
    open_, total = (len(found.order(Filter(undecided=True))[0]), found.order(Filter())[1])
    decided = int((found.decided > 0).sum())
    return (
        f"{open_:,} of {total:,} pairs to review are undecided; {len(found.pairs):,} pairs in all, {decided:,} decided "
        f"in {found.path}"
    )
