"""Report: a run folder as one self-contained page.

``run_folder`` reads what a run left behind, ``curves`` draws its numbers, ``page`` fills ``page.html.j2``.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from terrasieve.report.page import Figure, write_report

__all__ = ["Figure", "write_report"]


def __getattr__(name: str) -> Any:
    """Import the run's page, and torch with it, only when it is asked for: curation's pages do without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from terrasieve.report import page

    return getattr(page, name)
