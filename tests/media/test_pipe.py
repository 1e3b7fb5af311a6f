"""Processes beside this one that end before they have read everything."""

import errno
import subprocess
import sys

import pytest

from cogedit.media.pipe import ProcessPipe


class StdinOfWindows:
    """A pipe that says "invalid argument" where POSIX says that it is broken."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, data):
        return self._as_windows(self._stream.write, data)

    def close(self):
        return self._as_windows(self._stream.close)

    @staticmethod
    def _as_windows(call, *args):
        try:
            return call(*args)
        except BrokenPipeError as error:
            raise OSError(errno.EINVAL, "Invalid argument") from error


class PopenOfWindows(subprocess.Popen):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.stdin = StdinOfWindows(self.stdin)  # type: ignore[assignment]


@pytest.fixture(params=["posix", "windows"])
def ended(request, monkeypatch):
    """A process that has ended with 3 and has read nothing."""
    if request.param == "windows":
        monkeypatch.setattr(subprocess, "Popen", PopenOfWindows)
        monkeypatch.setattr("cogedit.media.pipe.IS_WINDOWS", True)
    program = "import os; os.write(2, b'no more'); os._exit(3)"
    with ProcessPipe([sys.executable, "-c", program], stall_timeout=600) as process:
        process.read_into(memoryview(bytearray(1)))  # comes back when it has ended
        yield process


def test_what_it_does_not_read_is_a_broken_pipe(ended):
    with pytest.raises(BrokenPipeError):
        ended.write(memoryview(bytes(10**6)))
    assert ended.wait() == (3, "no more")
