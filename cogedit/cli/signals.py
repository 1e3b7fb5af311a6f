"""SIGINT and SIGTERM: the first ends a long loop after its step, the second ends it at once."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cogedit.cli.screen import Screen
    from cogedit.stages.cancellation import Cancellation

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAID = "stopping after this step; the same again stops at once"


@contextmanager
def stoppable(stop: Cancellation, screen: Screen) -> Iterator[None]:
    """Pass signals on to the stage that runs in the block.

    Args:
        stop: Asked to stop by the first signal. Where no loop can grant that, and at the second
            signal, KeyboardInterrupt is raised wherever the block is.
        screen: Where to say what the first signal does.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may change how signals are handled
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        if not stop.request(signum):
            raise KeyboardInterrupt
        if screen.notes.leave(_SAID):
            return
        # Not through Python's stderr, which may be in the middle of a write.
        event = json.dumps({"event": "note", "text": _SAID})
        os.write(2, f"{event}\n".encode() if screen.jsonl else f"\n{_SAID}\n".encode())

    # What the parent process ignores, such as SIGINT in the background of a shell, stays ignored.
    heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
