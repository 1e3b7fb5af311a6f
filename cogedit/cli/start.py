"""The start of the command line: what holds before anything large is imported."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType

from cogedit.cli.streams import make_lasting


def main() -> None:
    """Run the command line and exit.

    Neither a terminal that goes away nor a stream that is closed or full ends it. Where a file or a
    device took no more of the result, the exit code says so.
    """
    stdout = make_lasting()
    if threading.current_thread() is threading.main_thread():
        _listen()
    from cogedit.cli import commands, screen

    shown = screen.Screen(jsonl="--jsonl" in sys.argv)  # no option is parsed yet
    try:
        commands.app()
    except KeyboardInterrupt:  # while the options are read; later a command handles it
        sys.exit(screen.report_stopped(signal.SIGINT, shown))
    except SystemExit as ended:
        sys.stdout.flush()
        if stdout is None or stdout.problem is None or ended.code:
            raise
        sys.exit(screen.report_unprinted(stdout.problem, shown))


def _listen() -> None:
    """Outlive the terminal, and let Ctrl-C end what has not begun yet."""
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # child processes inherit it
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)


def _end_at_once(signum: int, frame: FrameType | None) -> None:
    """End with 130: a KeyboardInterrupt in the middle of an import may come out as any error."""
    text = "interrupted: nothing was begun"
    if "--jsonl" in sys.argv:
        text = f'{{"event": "error", "message": "{text}", "exit_code": 130}}'
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())
    os._exit(130)
