"""Every error that cogedit raises on purpose, and the exit code that each one ends a command with.

```
CogeditError              1   (never raised itself; an uncaught exception is a bug and also exits 1)
├── UsageError            2   options that do not fit together or are out of range
│   └── ConfigError       2   a configuration file, preset or COGEDIT_* variable
├── VideoError            3   the input video
├── ArtifactError         4   an artifact that cannot be used
│   ├── ArtifactDamaged   4   ... because its bytes are not what its record says
│   └── ArtifactMismatch  4   ... because it belongs to another kind, model or setting
│       └── ArtifactNewer 4   ... or to a newer cogedit
├── ModelError            5   the checkpoint is missing, gated, incomplete or of another kind
├── DeviceMemoryError     6   the device, or the machine itself, ran out of memory
├── StorageError          7   disk full, folder missing, permission denied
│   └── LeaseLost         7   ... or another process goes on with the work of this one
├── NumericalError        8   NaN or Inf in the latents
├── WorkerDied            9   processes that make an edit keep dying
├── BatchError           10   part of a batch failed
└── Interrupted         130   stopped by the user
    └── Terminated      143   ... by SIGTERM, as schedulers do
```
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

_LONG = 100
"""Characters of a value in a sentence."""


_explain: list[Callable[[str], str | None]] = []


def explain_options(explain: Callable[[str], str | None]) -> None:
    """Let a function say what the options in an error's text are where there is no command line."""
    _explain.append(explain)


class CogeditError(Exception):
    """An error with a sentence for the user and, where one exists, the command that mends it.

    Options are named as a command line has them. A note says what they are in Python, which a
    traceback shows below the error.

    Args:
        message: What happened and where: what was found against what was expected.
        hint: The command or the change that mends it, without a trailing period; None if there
            is none.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        for explain in _explain:
            if (note := explain(f"{message} {hint or ''}")) is not None:
                self.add_note(note)

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message} ({self.hint})"


class UsageError(CogeditError):
    """Options that do not fit together or lie outside their range."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration file, a preset or an environment variable that cannot be used."""


class VideoError(CogeditError):
    """The input video is missing, unreadable or not a video."""

    exit_code = 3


class ArtifactError(CogeditError):
    """An artifact that cannot be used."""

    exit_code = 4


class ArtifactDamaged(ArtifactError):
    """The bytes of an artifact are not what its record says."""


class ArtifactMismatch(ArtifactError):
    """A sound artifact of another kind, model or setting than the command needs."""


class ArtifactNewer(ArtifactMismatch):
    """A sound artifact that a newer cogedit made."""


class ModelError(CogeditError):
    """The checkpoint is missing, gated, incomplete or not a CogVideoX text-to-video pipeline."""

    exit_code = 5


class DeviceMemoryError(CogeditError):
    """The device, or the machine itself, ran out of memory."""

    exit_code = 6


class StorageError(CogeditError):
    """A file could not be read or written: disk full, folder missing, permission denied."""

    exit_code = 7


class LeaseLost(StorageError):
    """This process was silent for so long that another one has taken its work over."""


class NumericalError(CogeditError):
    """NaN or Inf appeared in the latents."""

    exit_code = 8


class WorkerDied(CogeditError):
    """Processes that make an edit died before it was done, one after the other."""

    exit_code = 9


class BatchError(CogeditError):
    """Some items of a batch failed; the others are done."""

    exit_code = 10


class Interrupted(CogeditError):
    """Stopped by the user; the same command goes on from where it stopped."""

    exit_code = 130
    verb: ClassVar[str] = "interrupted"


class Terminated(Interrupted):
    """Stopped by SIGTERM; the same command goes on from where it stopped."""

    exit_code = 143
    verb: ClassVar[str] = "terminated"


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error, to go on in a sentence of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


@contextmanager
def memory_expected(what: str) -> Iterator[None]:
    """Turn the MemoryError of arrays that do not fit into a DeviceMemoryError.

    Args:
        what: What needs the memory, as in "the clip".
    """
    try:
        yield
    except MemoryError as error:
        raise DeviceMemoryError(
            f"this machine has too little memory for {what}: {first_line(error)}",
            hint="take fewer frames (--max-num-frames), or as a last resort a smaller --width and "
            "--height, at which most models were not trained",
        ) from error


def plain(value: object) -> str:
    """Write text as it is unless it is long or breaks the line, and other values as `shown`."""
    is_plain = isinstance(value, str) and value.isprintable() and len(value) <= _LONG
    return str(value) if is_plain else shown(value)


def shown(value: object) -> str:
    """Write a value of any size for a sentence: long ones are cut."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes no integer of more than 4300 digits
        return "a number of thousands of digits"
