"""Artifacts in the making: a folder beside each, which goes when the artifact is there.

It holds the lock of the process that makes it, the steps that are done, and the file itself until
it is whole. A process that is killed leaves the folder behind; the next one that makes the same
artifact goes on from it and removes it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cogedit.artifacts.atomic import TEMPORARY_SUFFIX, storage_error
from cogedit.artifacts.locks import acquire
from cogedit.artifacts.steps import newest_step
from cogedit.errors import StorageError
from cogedit.types import ArtifactKind

UNFINISHED_SUFFIX = ".unfinished"
_LOCK = "lock"


@dataclass(frozen=True)
class Unfinished:
    """The folder of an artifact in the making.

    Attributes:
        root: The folder; it need not exist.
        makes: Content keys of the artifacts that are made together, in their order.
    """

    root: Path
    makes: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path, kind: ArtifactKind, makes: Sequence[str]) -> Unfinished:
        """Where artifacts of a kind are made that are to lie in a folder."""
        name = f"{kind}-{makes[0][:12]}"
        if len(makes) > 1:
            digest = hashlib.sha256(" ".join(makes).encode("ascii")).hexdigest()
            name = f"{kind}s-{digest[:12]}"
        return cls(folder / f"{name}{UNFINISHED_SUFFIX}", tuple(makes))

    @contextlib.contextmanager
    def alone(self, *, waiting: Callable[[], None] | None) -> Iterator[None]:
        """Make the folder and be the only process in it, where the file system has locks.

        When the block ends, however it ends, steps stay and everything else goes.

        Args:
            waiting: Called once if another process is in it; None does not wait.

        Raises:
            BlockingIOError: Another process is in it, and `waiting` is None.
            StorageError: The folder cannot be made.
        """
        try:
            lock = acquire(self.root / _LOCK, waiting=waiting)
        except BlockingIOError:
            raise
        except OSError as error:
            raise storage_error(self.root, error, "write") from error
        try:
            yield
        finally:
            # The lock file goes while it is held: who waits for it notices and makes a new one.
            _unlink(*self.root.glob(f".*{TEMPORARY_SUFFIX}"), self.root / _LOCK)
            with contextlib.suppress(OSError):  # steps are in it, or another process is
                self.root.rmdir()
            if lock is not None:
                lock.release()

    def remove_steps(self) -> None:
        """Remove the steps: the artifact is there."""
        # From the last to the first, so that what is left is always a chain.
        _unlink(*sorted(self.root.glob("*.safetensors"), reverse=True))

    def clear(self) -> bool:
        """Remove the folder with its steps, unless a process is in it.

        Returns:
            Whether it is gone.
        """
        if self.root.is_dir():
            with contextlib.suppress(BlockingIOError, StorageError), self.alone(waiting=None):
                self.remove_steps()
        return not self.root.exists()


def made_together(folder: Path, kind: ArtifactKind) -> list[Unfinished]:
    """Where several artifacts of a kind are being made together in a folder, with a step done."""
    found = []
    for root in sorted(folder.glob(f"{kind}s-*{UNFINISHED_SUFFIX}")):
        step = newest_step(root)
        if step is not None:
            found.append(Unfinished(root, step.makes))
    return found


def _unlink(*paths: Path) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()
