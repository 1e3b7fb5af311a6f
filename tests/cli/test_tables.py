"""Tables: one row per line for programs, headings and folded cells on a terminal."""

import re
import sys

from cogedit.cli.tables import show_rows

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
