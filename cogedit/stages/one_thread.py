"""What one thread may use at a time, and one process alone: the loaded model of a session."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cogedit.errors import UsageError


class OneThread:
    """Tells whose turn it is with a session, and how many of its `with` bodies are open."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._bodies = 0

    @property
    def _is_copy(self) -> bool:
        # Forked: what is held, such as processes beside it, belongs to the other one.
        return self._process != os.getpid()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Let this thread use the session inside the body, also where it does already.

        Raises:
            UsageError: Another thread is using it, or this process is a copy of its own.
        """
        if self._is_copy:
            raise UsageError(
                "this session belongs to the process that this one was forked from",
                hint="make a Session in each process",
            )
        if not self._lock.acquire(blocking=False):
            raise UsageError(
                "another thread is using this session",
                hint="make a Session for each thread, or one call after the other",
            )
        try:
            yield
        finally:
            self._lock.release()

    def enter(self) -> None:
        """Note that a `with` body begins."""
        self._bodies += 1

    def leave(self) -> bool:
        """Note that a `with` body ends; return whether all that is held is to be released."""
        self._bodies -= 1
        return self._bodies == 0 and not self._is_copy

    def __reduce__(self) -> str:
        raise TypeError(
            "a Session holds a loaded model, and is not pickled or copied: "
            "make one in each process, and one for each thread"
        )
