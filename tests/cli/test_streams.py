"""Standard streams, also as Windows has them; `tests/faults` breaks those of whole runs."""

import errno
import io
import os
import threading

import pytest

from cogedit.cli.streams import lasting
from cogedit.cli.waiting import WaitingLine

TEXT = "⠼ 49 frames → bear.mp4\n"


@pytest.fixture
def on_windows(monkeypatch):
    monkeypatch.setattr("cogedit.cli.streams.IS_WINDOWS", True)
    monkeypatch.setattr("cogedit.cli.waiting.IS_WINDOWS", True)


@pytest.fixture
def pipe():
    """Both ends of a pipe."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


class Console(io.StringIO):
    """A terminal that takes note of what it is given, and when it is given the first of it."""

    def __init__(self):
        super().__init__()
        self.is_written = threading.Event()

    encoding = "utf-8"

    def isatty(self):
        return True

    def write(self, text):
        count = super().write(text)
        self.is_written.set()
        return count


def of_the_code_page():
    return io.TextIOWrapper(io.BytesIO(), encoding="cp1252")


def test_what_windows_redirects_is_utf_8_with_plain_line_ends(on_windows, pipe):
    text, _ = lasting(pipe[1], like=of_the_code_page())
    print(TEXT, end="\udcff\n", file=text, flush=True)
    assert os.read(pipe[0], 1000) == f"{TEXT}\\udcff\n".encode()


def test_elsewhere_a_stream_has_the_encoding_of_the_one_it_replaces(pipe):
    text, _ = lasting(pipe[1], like=of_the_code_page())
    assert (text.encoding, text.errors) == ("cp1252", "strict")


def test_a_console_of_windows_stays_as_it_is(on_windows, pipe):
    console = Console()
    assert lasting(pipe[1], like=console) == (console, None)


def test_what_windows_calls_a_terminal_as_well_is_utf_8(on_windows, pipe, monkeypatch):
    """NUL is one, and has the code page."""
    null = of_the_code_page()
    monkeypatch.setattr(null, "isatty", lambda: True)
    text, _ = lasting(pipe[1], like=null)
    assert text.encoding == "utf-8"


@pytest.mark.skipif(not hasattr(os, "eventfd"), reason="what else refuses a write as invalid")
@pytest.mark.parametrize("is_windows", [True, False])
def test_an_invalid_argument_is_a_reader_that_left_on_windows(monkeypatch, is_windows):
    monkeypatch.setattr("cogedit.cli.streams.IS_WINDOWS", is_windows)
    descriptor = os.eventfd(0)  # which takes 8 bytes and no fewer
    text, below = lasting(descriptor, like=None)
    print("49", file=text, flush=True)
    print("49 frames", file=text, flush=True)  # goes nowhere
    os.close(descriptor)
    assert getattr(below.problem, "errno", None) == (None if is_windows else errno.EINVAL)


def test_a_full_pipe_is_waited_for_on_windows(on_windows, pipe, monkeypatch):
    monkeypatch.setattr("select.select", None)  # which takes sockets alone there
    os.set_blocking(pipe[1], False)
    data, found = b"x" * 300_000, bytearray()

    def read():
        while len(found) < len(data):
            found.extend(os.read(pipe[0], 65536))

    reader = threading.Thread(target=read, daemon=True)
    text, below = lasting(pipe[1], like=None)
    monkeypatch.setattr("time.sleep", lambda _: reader.is_alive() or reader.start())
    text.write(data.decode())
    text.flush()
    reader.join()
    assert bytes(found) == data
    assert below.problem is None


def test_a_waiting_line_needs_no_escape_sequence_on_windows(on_windows, monkeypatch):
    console = Console()
    monkeypatch.setattr("sys.stderr", console)
    with WaitingLine().waiting("loading the VAE"):
        console.is_written.wait()
    drawn = console.getvalue()
    assert "loading the VAE" in drawn
    assert "\x1b" not in drawn
    assert set(drawn.split("\r")[-2]) == {" "}, "it is taken away"
