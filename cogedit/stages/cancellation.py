"""A wish to stop, granted where nothing is lost: between two steps of a loop that keeps them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from cogedit.errors import Interrupted, Terminated


class Stop:
    """Passes a wish to stop from a signal, or another thread, to the loop that is running.

    Attributes:
        signum: The signal that asked, as in `signal.SIGINT`; None while nobody has.
        at_once: Whether the caller was told to stop on its own. Libraries may make another error
            of the KeyboardInterrupt that follows.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.at_once = False
        self._keeping = False

    def ask(self, signum: int = signal.SIGINT) -> bool:
        """Ask to stop.

        Returns:
            True if a loop is running that ends after its step with that step kept. False if the
            caller must stop on its own: no such loop is running, or it was asked before.
        """
        first = self.signum is None
        self.signum = signum
        self.at_once = not (first and self._keeping)
        return not self.at_once

    @contextmanager
    def granted(self) -> Iterator[None]:
        """Grant the wish in the block, which calls `check` once each step is kept."""
        self._keeping = True
        try:
            yield
        finally:
            self._keeping = False
        self.check("after the last step")

    def check(self, where: str) -> None:
        """Stop here if somebody asked to.

        Args:
            where: Where this is, as in "after step 12 of 50".

        Raises:
            Interrupted: Somebody asked; `Terminated` if it was SIGTERM.
        """
        if self.signum is None:
            return
        kind = Terminated if self.signum == signal.SIGTERM else Interrupted
        raise kind(f"{kind.verb} {where}", hint="the same command goes on from there")
