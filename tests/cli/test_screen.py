"""What a person sees while something runs."""

import json
import os
import pty
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from cogedit.cli import app
from cogedit.cli.progress import Notes, Thumbnail
from cogedit.cli.screen import Screen, printable
from cogedit.progress import Step, StepInfo, WindowInfo


def steps(total):
    return [StepInfo(index, total, timestep=0) for index in range(total)]


def test_plain_progress_is_a_line_about_every_thirty_seconds(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    with Screen().progress("inverting", 10) as on_step:
        for step in steps(10):
            clock[0] += 12.0
            on_step(step)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "inverting: step 3 of 10, 12.0 s per step, 1:24 left",
        "inverting: step 6 of 10, 12.0 s per step, 0:48 left",
        "inverting: step 9 of 10, 12.0 s per step, 0:12 left",
    ]


def test_windows_of_a_slow_step_are_told_too(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    with Screen().progress("inverting", 10) as on_step:
        for window in range(8):
            clock[0] += 12.0
            on_step(WindowInfo(3, 10, window, 8))
    assert capsys.readouterr().err.splitlines() == [
        "inverting: step 4 of 10, window 3 of 8",
        "inverting: step 4 of 10, window 6 of 8",
    ]
    with Screen(jsonl=True).progress("inverting", 10) as on_step:
        on_step(WindowInfo(3, 10, 0, 8))
    assert json.loads(capsys.readouterr().err) == {
        "event": "window",
        "doing": "inverting",
        "step": 4,
        "total": 10,
        "window": 1,
        "windows": 8,
    }


def test_long_times_have_hours(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    with Screen().progress("inverting", 100) as on_step:
        clock[0] += 61.0
        on_step(StepInfo(0, 100, timestep=0))
    assert "61.0 s per step, 1:40:39 left" in capsys.readouterr().err


def test_quiet_says_nothing(capsys):
    quiet = Screen(quiet=True, verbose=True)
    quiet.say("hello")
    quiet.detail("hello")
    with quiet.progress("inverting", 3) as on_step:
        for step in steps(3):
            on_step(step)
    assert capsys.readouterr() == ("", "")


def test_verbose_says_more(capsys):
    Screen().detail("a detail")
    Screen(verbose=True).detail("a detail")
    assert capsys.readouterr().err == "a detail\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a [bold]b[/bold]", "a [bold]b[/bold]"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("tab\tbell\a", "tab\\tbell\\x07"),
        ("שלום \u202eevil", "שלום \\u202eevil"),
        ("two\nlines", "two\\nlines"),
    ],
)
def test_what_is_shown_moves_no_cursor(text, shown):
    assert printable(text) == shown


def test_events_are_a_json_object_per_line(monkeypatch, capsys):
    """Everything but the result, which stays alone on stdout."""
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    screen = Screen(jsonl=True)
    screen.say("two\nlines")
    screen.detail("not asked for")
    with screen.progress("inverting", 8) as on_step:
        for step in steps(8)[5:7]:  # an earlier run did five
            clock[0] += 2.0
            on_step(step)
    screen.error("it is full", 7, hint="make room")
    screen.result("invert", [{"path": "t.safetensors"}])
    captured = capsys.readouterr()
    assert captured.out == "t.safetensors\n"
    note, first, second, error = map(json.loads, captured.err.splitlines())
    assert note == {"event": "note", "text": "two\nlines"}
    assert (first["step"], first["total"], first["doing"]) == (6, 8, "inverting")
    assert (first["seconds_per_step"], first["seconds_left"]) == (2.0, 4.0)
    assert (second["step"], second["seconds_left"]) == (7, 2.0)
    assert error == {"event": "error", "message": "it is full", "hint": "make room", "exit_code": 7}


def test_loops_without_noise_levels_are_told_alike(capsys):
    with Screen(jsonl=True).progress("decoding", 2) as on_step:
        on_step(Step(0, 2))
        on_step(StepInfo(1, 2, timestep=0, residual=0.0))
    plain, level = map(json.loads, capsys.readouterr().err.splitlines())
    assert plain.keys() == level.keys()
    assert (plain["step"], plain["timestep"], plain["residual"]) == (1, None, None)
    assert (level["step"], level["timestep"], level["residual"]) == (2, 0, 0.0)


def test_a_command_tells_events(tmp_path):
    done = CliRunner().invoke(app, ["load", str(tmp_path / "no"), "--jsonl", "--model", "shapes"])
    [event] = map(json.loads, done.stderr.splitlines())
    assert done.exit_code == event["exit_code"] == 3
    assert (done.stdout, event["event"]) == ("", "error")


def test_results_are_paths_or_one_object(capsys):
    outputs = [{"path": "-dash.mp4", "reused": True}, {"path": "b.mp4", "reused": False}]
    Screen().result("edit", outputs)
    assert capsys.readouterr().out == "./-dash.mp4\nb.mp4\n"
    Screen(json_output=True).result("edit", outputs)
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"command": "edit", "outputs": outputs}


BAR = """
import time
from cogedit.cli.screen import Screen
from cogedit.progress import StepInfo
with Screen().progress("editing: a [red] cat " + "x" * 60, 4) as on_step:
    for index in range(4):
        time.sleep(0.01)
        on_step(StepInfo(index, 4, timestep=0))
"""


DRAWN = """
import threading
from rich.live import Live
drawn, refresh = threading.Event(), Live.refresh
def refreshing(live):
    refresh(live)
    drawn.set()
Live.refresh = refreshing
def wait_until_drawn():
    for _ in range(2):  # the first drawing may have begun before
        drawn.clear()
        drawn.wait(600)
"""

PICTURE = f"""{DRAWN}
from cogedit.cli.progress import Thumbnail
from cogedit.cli.screen import Screen
from cogedit.progress import RGBPicture, StepInfo
screen = Screen(thumbnail=Thumbnail())
show = screen.preview
with screen.progress("editing", 4) as on_step:
    for index in range(4):
        if show is not None:
            show(RGBPicture(2, 2, bytes([255, 0, 0] * 2 + [0, 0, 255] * 2)))
        wait_until_drawn()
        on_step(StepInfo(index, 4, timestep=0))
"""


SAID = f"""{DRAWN}
import os, signal
from contextlib import suppress
from cogedit.cli.progress import Thumbnail
from cogedit.cli.screen import Screen, handle_errors
from cogedit.errors import Interrupted
from cogedit.cancellation import Cancellation
from cogedit.progress import RGBPicture, StepInfo
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
stop, screen = Cancellation(), Screen(thumbnail=Thumbnail())
with (
    handle_errors(screen, cancellation=stop),
    suppress(Interrupted),
    screen.progress("editing", 4) as on_step,
    stop.between_steps(),
):
    for index in range(4):
        screen.preview(RGBPicture(2, 2, bytes([255, 0, 0] * 4)))
        wait_until_drawn()
        on_step(StepInfo(index, 4, timestep=0))
        if index == 1:
            screen.say("a [bold]cat[/bold] :cat: on 17\\x1b[2K " + "y " * 60 + "end")
        elif index == 2:
            os.kill(os.getpid(), signal.SIGINT)
screen.say("afterwards")
"""


def left_on(shown):
    """The lines of a terminal that wraps none, after what a program wrote to it."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", shown.decode()):
        if part == "\r":
            column = 0
        elif part == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part.startswith("\x1b") and part.endswith("A"):
            row -= int(part[2:-1])
        elif not part.startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in lines if line.strip()]


def on_a_terminal(code, term, columns=120):
    """What a program writes to a terminal as its stderr; its stdout stays empty."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=theirs,
        stdout=subprocess.PIPE,
        env=os.environ | {"TERM": term, "COLUMNS": str(columns), "COLORTERM": "truecolor"},
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 65536):  # a terminal holds little that nobody reads
                shown += chunk
        except OSError:
            pass  # what reading a closed terminal gives on Linux
        assert process.stdout.read() == b""
    assert process.returncode == 0
    return shown


SLOW_CLOCK = """
import threading, time
time.monotonic = lambda now=time.monotonic, start=time.monotonic(): (now() - start) / 100
"""
"""Under a second passes, also where the machine is busy."""


@pytest.mark.parametrize(("term", "bar"), [("xterm", True), ("dumb", False)])
def test_a_terminal_has_a_bar(term, bar):
    shown = on_a_terminal(SLOW_CLOCK + BAR, term)
    assert (b"editing: a [red] cat" in shown) == bar
    assert (b"4/4" in shown) == bar
    assert (b"steps/s" in shown) == bar
    assert bool(re.search(rb"0:00:00.*\+ 0:00 left", shown)) == bar


@pytest.mark.parametrize("columns", [60, 80])
def test_a_bar_leaves_room_for_what_a_terminal_shows_of_ctrl_c(columns):
    """Else the terminal goes on to another line, and the bar is drawn anew beside the old one."""
    [bar] = left_on(on_a_terminal(BAR, "xterm", columns))
    assert bar.endswith(" left")
    assert len(bar) <= columns - len("^C")


@pytest.mark.parametrize(("columns", "is_shown"), [(60, False), (80, True), (120, True)])
def test_a_bar_shows_windows_where_there_is_room(columns, is_shown):
    in_windows = PICTURE.replace("if show is not None:\n", "if True:\n").replace(
        "show(RGBPicture(2, 2, bytes([255, 0, 0] * 2 + [0, 0, 255] * 2)))",
        "on_step(WindowInfo(index, 4, 1, 13))",
    )
    in_windows = in_windows.replace("RGBPicture, StepInfo", "StepInfo, WindowInfo")
    shown = on_a_terminal(in_windows, "xterm", columns)
    assert (b"3/4, window 2/13" in shown) == is_shown
    [bar] = left_on(shown)
    assert bar.endswith(" left")
    assert len(bar) <= columns - len("^C")
    assert "window" not in bar


def test_what_is_said_while_there_is_a_bar_stands_above_it():
    """Once and as it is: the bar is not drawn twice, and nothing is drawn over."""
    said, stopping, bar, *rest = left_on(on_a_terminal(SAID, "xterm"))
    assert said == "a [bold]cat[/bold] :cat: on 17\\x1b[2K " + "y " * 60 + "end"
    assert "Ctrl-C" in stopping
    assert bar.startswith("editing ")
    assert "4/4" in bar
    assert rest == ["afterwards"]


def test_the_bar_of_coding_does_not_stay():
    """An edit has several, and each ends with a sentence about what was written."""
    of_coding = BAR.replace("StepInfo(index, 4, timestep=0)", "Step(index, 4)")
    shown = on_a_terminal(of_coding.replace("import StepInfo", "import Step"), "xterm")
    assert b"4/4" in shown
    erases_line_above = b"\x1b[1A\x1b[2K"
    assert shown.endswith(erases_line_above)
    assert not on_a_terminal(BAR, "xterm").endswith(erases_line_above)


def test_a_terminal_has_a_thumbnail():
    shown = on_a_terminal(PICTURE, "xterm")
    assert "▀".encode() in shown
    red_over_blue = b"38;2;255;0;0;48;2;0;0;255m"
    reds = [line for line in shown.splitlines() if b"38;2;255;0;0" in line]
    blues = [line for line in shown.splitlines() if b"48;2;0;0;255" in line]
    assert reds
    assert blues
    assert red_over_blue not in reds[0]  # the upper half is all red
    assert b"no terminal" not in shown


def test_a_thumbnail_goes_with_its_loop_also_where_that_fails():
    failing = PICTURE.replace(
        "with screen", "from contextlib import suppress\nwith suppress(ValueError), screen"
    )
    shown = on_a_terminal(
        f"{failing}        if index == 2:\n            raise ValueError\n", "xterm"
    )
    [bar] = left_on(shown)
    assert "3/4" in bar


def test_a_note_that_comes_after_the_last_drawing_is_shown_all_the_same():
    notes, shown = Notes(), []
    with notes.shown_by(shown.append):
        assert notes.put("a [bold]cat[/bold]")
        assert shown == []
    assert shown == ["a [bold]cat[/bold]"]
    assert not notes.put("another")


def test_elsewhere_a_thumbnail_is_missed_aloud(capsys):
    assert Screen(thumbnail=Thumbnail()).preview is None
    assert "--preview" in capsys.readouterr().err


# --- waiting --------------------------------------------------------------------------------------


def test_elsewhere_than_on_a_terminal_only_what_is_worth_a_line_is_said(capsys):
    for screen in (Screen(), Screen(quiet=True)):
        with screen.wait("checking a file"):
            pass
        with screen.wait("loading T5, 9.5 GB in bf16", is_said=True):
            pass
    assert capsys.readouterr() == ("", "loading T5, 9.5 GB in bf16\n")
    with Screen(jsonl=True).wait("loading T5", is_said=True):
        pass
    assert json.loads(capsys.readouterr().err) == {"event": "note", "text": "loading T5"}


WAITING = """
import os, threading
from cogedit.cli.screen import Screen

drawn, write = threading.Condition(), os.write
shown = []
def writing(descriptor, data):
    with drawn:
        shown.append(data)
        drawn.notify_all()
    return write(descriptor, data)
os.write = writing
def wait_until(is_drawn):
    with drawn:
        drawn.wait_for(lambda: any(map(is_drawn, shown)), timeout=600)

screen = Screen()
with screen.wait("loading T5"):
    wait_until(lambda data: b"loading T5 0:" in data and b" 0:00" not in data)
    screen.say("a note")
    with screen.wait("placing T5"):
        wait_until(lambda data: b"placing T5 0:" in data)
screen.say("the end")
"""


def test_a_terminal_shows_what_is_waited_for_and_that_time_passes():
    shown = on_a_terminal(WAITING, "xterm")
    assert re.search(rb"loading T5 0:(0[1-9]|[1-5]\d)", shown)
    assert re.search(rb"placing T5 0:\d\d", shown)
    lines = re.sub(rb"[^\n]*\r\x1b\[K", b"", shown).split(b"\r\n")
    assert lines == [b"a note", b"the end", b""]


def test_loops_at_once_are_lines_of_one_bar():
    from cogedit.cli.bar import bar_progress

    notes = Notes()
    first, second = (bar_progress(f"{n}/2 inverting", 4, notes=notes) for n in (1, 2))
    first.__enter__()(Step(0, 4))
    second.__enter__()(Step(2, 4))
    bar = notes.bar
    lines = [(task.description, task.completed) for task in bar.tasks]
    assert lines == [("1/2 inverting", 1), ("2/2 inverting", 3)]
    first.__exit__(None, None, None)
    assert [task.description for task in bar.tasks] == ["2/2 inverting"]
    assert notes.put("a note")
    second.__exit__(None, None, None)
    assert not notes.put("a note without a bar")
    assert notes.bar is None
