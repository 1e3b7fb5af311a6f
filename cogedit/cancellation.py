"""Cooperative cancellation: a loop stops between two steps, where no work is lost."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from cogedit.errors import Interrupted, Terminated


class Cancellation:
    """Passes a request to stop from a signal, or another thread, to the loop that is running.

    Attributes:
        signum: The signal of the request, as in `signal.SIGINT`; None while there is none.
        immediate: Whether the caller of `request` was told to stop by itself. A library may turn
            the KeyboardInterrupt that follows into an error of its own.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.immediate = False
        self._in_loop = False

    def request(self, signum: int = signal.SIGINT) -> bool:
        """Request a stop; return whether a loop is running that ends after its current step.

        Otherwise the caller must stop by itself: no loop is running, or it was asked before.
        """
        first = self.signum is None
        self.signum = signum
        self.immediate = not (first and self._in_loop)
        return not self.immediate

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """Let a loop in the body stop between its steps: it calls `check` after each."""
        self._in_loop = True
        try:
            yield
        finally:
            self._in_loop = False
        self.check("after the last step")

    def check(self, where: str, *, hint: str = "the same command goes on from there") -> None:
        """Stop here, as in "after step 12 of 50", if requested: `Interrupted`, or `Terminated`."""
        if self.signum is None:
            return
        kind = Terminated if self.signum == signal.SIGTERM else Interrupted
        raise kind(f"{kind.verb} {where}", hint=hint)
