"""Report: a run folder as one self-contained page.

``run_folder`` reads what a run left behind, ``curves`` draws its numbers, ``page`` fills ``page.html.j2``.
"""

from terrasieve.report.page import Figure, write_report

__all__ = ["Figure", "write_report"]
