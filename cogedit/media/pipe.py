"""A process that decodes or encodes beside this one, with a bound on how long it may be silent."""

from __future__ import annotations

import contextlib
import errno
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Self, cast

from cogedit.platforms import IS_WINDOWS, OWN_SESSION

_STDERR_KEPT = 64 * 1024


class ProcessPipe:
    """A running process whose stdin or stdout carries frames. Use it in a `with` statement.

    Leaving the block kills a process that still runs. A call that blocks for longer than
    `stall_timeout` seconds kills it too, which the call then sees as the end of the stream. Raises
    `OSError` where the command cannot be run.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        stall_timeout: float,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._stall_timeout = stall_timeout
        self._deadline: float | None = None
        self._closed = threading.Event()
        self._messages = bytearray()
        self.timed_out = False
        # A session of its own: Ctrl-C reaches us and not the process, which must not finish a file
        # that we are about to throw away.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            **OWN_SESSION,
        )
        self._stdin, self._stdout, self._stderr = (
            cast(IO[bytes], stream)
            for stream in (self._process.stdin, self._process.stdout, self._process.stderr)
        )
        self._threads = [
            threading.Thread(target=self._drain_stderr, daemon=True),
            threading.Thread(target=self._watch, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._closed.set()
        for thread in self._threads:
            thread.join()
        for stream in (self._stdin, self._stdout, self._stderr):
            # It may hold bytes that an ended process did not take.
            with contextlib.suppress(BrokenPipeError), _broken_pipes():
                stream.close()

    def read_into(self, buffer: memoryview) -> int:
        """Fill `buffer` with bytes from stdout; returns how many came before the stream ended."""
        filled = 0
        with self._watched():
            while filled < len(buffer):
                count = self._stdout.readinto(buffer[filled:])  # type: ignore[attr-defined]
                if not count:
                    break
                filled += count
        return filled

    def write(self, data: memoryview) -> None:
        """Send bytes to stdin. Raises `BrokenPipeError` if the process has ended; see `wait`."""
        with self._watched(), _broken_pipes():
            self._stdin.write(data)

    def wait(self) -> tuple[int, str]:
        """Close its stdin, wait for its end and return status and messages."""
        with self._watched():
            self.close_stdin()
            returncode = self._process.wait()
        self._threads[0].join()
        return returncode, self._messages.decode("utf-8", errors="replace")

    def close_stdin(self) -> None:
        """Signal that no more bytes come."""
        # The status of a process that has ended says why.
        with contextlib.suppress(BrokenPipeError), _broken_pipes():
            self._stdin.close()

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        self._deadline = time.monotonic() + self._stall_timeout
        try:
            yield
        finally:
            self._deadline = None

    def _drain_stderr(self) -> None:
        # A pipe that nobody empties blocks the process after 64 kB of messages.
        while chunk := self._stderr.read1(4096):  # type: ignore[attr-defined]
            if len(self._messages) < _STDERR_KEPT:
                self._messages += chunk

    def _watch(self) -> None:
        while not self._closed.wait(0.2):
            deadline = self._deadline
            if deadline is not None and time.monotonic() > deadline:
                self.timed_out = True
                self._process.kill()
                return


@contextlib.contextmanager
def _broken_pipes() -> Iterator[None]:
    """Name the pipe to a process that has ended so also where Windows says "invalid argument"."""
    try:
        yield
    except OSError as error:
        if not IS_WINDOWS or error.errno != errno.EINVAL:
            raise
        raise BrokenPipeError(errno.EPIPE, "the process has ended") from error
