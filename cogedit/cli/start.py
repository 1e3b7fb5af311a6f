"""The start of the command line: what holds before anything large is imported.

A Ctrl-C before it would end in a traceback, so nothing is imported here that takes milliseconds.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # below `signal`, which imports ten times as long
import os
import sys

TYPE_CHECKING = False  # that of `typing`, without its import
if TYPE_CHECKING:
    from types import FrameType


def main() -> None:
    """Run the command line and exit. Of several processes that torchrun starts, the first runs it.

    Neither a terminal that goes away nor a stream that is closed or full ends it. Where a file or a
    device took no more of the result, the exit code says so.
    """
    _listen()
    ranks = int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1
    if ranks == 1:
        _run()
        return
    from cogedit.stages.helpers import follow, release

    if os.environ["RANK"] != "0":
        follow()
        return
    os.environ["COGEDIT_TRANSFORMER_GPUS"] = str(ranks)
    try:
        _run()
    finally:
        release()


def _run() -> None:
    from cogedit.cli.streams import make_lasting

    stdout = make_lasting()
    from cogedit.cli import commands, screen

    shown = screen.Screen(jsonl="--jsonl" in sys.argv)  # no option is parsed yet
    try:
        commands.app()
    except KeyboardInterrupt:  # while the options are read; later a command handles it
        sys.exit(screen.report_stopped(_signal.SIGINT, shown))
    except SystemExit as ended:
        sys.stdout.flush()
        if stdout is None or stdout.problem is None or ended.code:
            raise
        sys.exit(screen.report_unprinted(stdout.problem, shown))


def _listen() -> None:
    """Outlive the terminal, and let Ctrl-C end what has not begun yet."""
    try:
        if hasattr(_signal, "SIGHUP"):
            _signal.signal(_signal.SIGHUP, _signal.SIG_IGN)  # child processes inherit it
        if _signal.getsignal(_signal.SIGINT) == _signal.default_int_handler:
            _signal.signal(_signal.SIGINT, _end_at_once)
    except ValueError:
        pass  # not in the main thread, which alone hears signals


def _end_at_once(signum: int, frame: FrameType | None) -> None:
    """End with 130: a KeyboardInterrupt in the middle of an import may come out as any error."""
    text = "interrupted: nothing was begun"
    if "--jsonl" in sys.argv:
        text = f'{{"event": "error", "message": "{text}", "exit_code": 130}}'
    try:
        os.write(2, f"{text}\n".encode())
    finally:
        os._exit(130)
