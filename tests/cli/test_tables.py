"""Tables: one row per line for programs, headings and folded cells on a terminal."""

import re
import sys

import pytest

from cogedit.cli.tables import cost_text, show_rows
from cogedit.models.cost import Flops, Work
from cogedit.tools.clip_cost import StageEstimate

ROWS = [
    ("a.safetensors", "12 B", "한 [bold]cat[/bold] " * 8),
    ("b", "1.5 MB", "two\nlines\x1b[31m"),
]


def test_elsewhere_a_row_is_a_line_as_it_is(capsys):
    show_rows(ROWS, headings=("path", "size", "about"))
    first, second = capsys.readouterr().out.splitlines()
    assert first == "a.safetensors  12 B    " + ("한 [bold]cat[/bold] " * 8).rstrip()
    assert second == "b              1.5 MB  two\\nlines\\x1b[31m"


def on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")


def test_a_terminal_gets_headings_and_folded_cells(capsys, monkeypatch):
    on_a_terminal(monkeypatch)
    show_rows(ROWS, headings=("path", "size", "about"))
    shown = re.sub(r"\x1b\[[01]?m", "", capsys.readouterr().out)  # bold and plain
    lines = shown.splitlines()
    assert lines[0].split() == ["path", "size", "about"]
    assert all(len(line.rstrip()) <= 60 for line in lines)
    assert shown.count("[bold]cat[/bold]") == 8
    assert "\\x1b[31m" in shown
    assert "\x1b[31m" not in shown


def test_a_long_listing_is_not_drawn(capsys, monkeypatch):
    on_a_terminal(monkeypatch)
    show_rows(ROWS * 1000, headings=("path", "size", "about"))
    assert len(capsys.readouterr().out.splitlines()) == 2000


@pytest.mark.parametrize(
    ("calls", "rows", "text"),
    [(1, 1, "1 call, 1 row"), (1, 2, "1 call, 2 rows"), (1200, 2400, "1,200 calls, 2,400 rows")],
)
def test_one_call_is_no_calls(calls, rows, text):
    stage = StageEstimate("invert", 0, 1, Work(calls=calls, rows=rows, flops=Flops()), 0)
    assert cost_text(stage).startswith(f"{text}, ")
