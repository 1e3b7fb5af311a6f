"""Tables of figures on stdout, for the demo and the benchmarks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

_PIPE_WIDTH = 170


def make_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table: the first column is text, the others are figures.

    Args:
        title: Above the table.
        heads: One per column.
        rows: One cell per column each; brackets in them are not markup.
    """
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    for index, head in enumerate(heads):
        table.add_column(Text(head), justify="right" if index else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def print_report(tables: Sequence[Table], *, legend: str, paths: Sequence[Path]) -> None:
    """Print tables, what their figures mean, and the files that were written, to stdout.

    Args:
        tables: In their order.
        legend: One paragraph.
        paths: One unbroken line each, so that a script can read them from a pipe.
    """
    # A pipe has no width: the tables must not be folded into 80 columns there.
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    for table in tables:
        console.print(table)
    console.print(legend, markup=False, highlight=False)
    for path in paths:
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)
