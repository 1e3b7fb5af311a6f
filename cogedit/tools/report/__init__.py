"""report: a workspace -> one HTML page with its source, its edits, and figures about them."""

from cogedit.tools.report.page import report

__all__ = ["report"]
