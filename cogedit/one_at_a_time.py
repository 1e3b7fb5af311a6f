"""A lock between the threads of a process, which a forked process has anew."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class OneAtATime:
    """Lets one thread at a time into a body; the thread that is in may enter again.

    A forked process has one thread alone. What another held when it was made, nobody would ever
    give back there.
    """

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.RLock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until no other thread is in a body."""
        with self._lock:
            yield
