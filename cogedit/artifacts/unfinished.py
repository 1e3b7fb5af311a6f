"""Artifacts in the making: a folder beside each, which is removed when the artifact is complete.

It holds the lease of the process that makes the artifact, the finished steps, and the file itself
until it is whole. A killed process leaves the folder behind; the next one that makes the same
artifact resumes from it and removes it.

Nothing else in it is ever removed. A link by the name of such a folder is not followed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cogedit.artifacts.atomic import show, storage_error, temporary_files
from cogedit.artifacts.leases import acquire, is_lease, is_lost
from cogedit.artifacts.steps import newest_step, step_files
from cogedit.errors import LeaseLost, StorageError
from cogedit.types import ArtifactKind

UNFINISHED_SUFFIX = ".unfinished"


@dataclass(frozen=True)
class Unfinished:
    """The folder of artifacts in the making, which need not exist.

    Attributes:
        root: The folder.
        makes: Content keys of the artifacts that are made together, in order.
    """

    root: Path
    makes: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path, kind: ArtifactKind, makes: Sequence[str]) -> Unfinished:
        """The folder for artifacts of a kind that will be written to `folder`."""
        name = f"{kind}-{makes[0][:12]}"
        if len(makes) > 1:
            digest = hashlib.sha256(" ".join(makes).encode("ascii")).hexdigest()
            name = f"{kind}s-{digest[:12]}"
        return cls(folder / f"{name}{UNFINISHED_SUFFIX}", tuple(makes))

    @contextlib.contextmanager
    def alone(self, *, waiting: Callable[[], None] | None) -> Iterator[None]:
        """Make the folder and be the only process in it.

        When the block ends, however it ends, steps stay; the lease and half-written files go.

        Args:
            waiting: Called at every look while another process is in it; None does not wait.

        Raises:
            BlockingIOError: Another process is in it, and `waiting` is None.
            StorageError: The folder cannot be made, or a link is in its place.
        """
        if self.root.is_symlink():
            raise StorageError(
                f"cannot write {show(self.root)}: it is a link, expected a folder of cogedit",
                hint=f"remove the link: rm {shlex.quote(show(self.root))}",
            )
        try:
            lease = acquire(self._lease, waiting=waiting, is_watched=waiting is not None)
        except BlockingIOError:
            raise
        except OSError as error:
            raise storage_error(self.root, error, "write") from error
        try:
            yield
        finally:
            if not lease.is_lost:
                _unlink(temporary_files(self.root))
            lease.release()
            with contextlib.suppress(OSError):  # steps are in it, or another process is
                self.root.rmdir()

    def check_alone(self) -> None:
        """Raise `LeaseLost` inside of `alone` if another process has taken the folder over."""
        if is_lost(self._lease):
            raise LeaseLost(
                f"another process goes on in {show(self.root)}: this one was silent for too long",
                hint="the same command waits for it",
            )

    def remove_steps(self) -> None:
        """Remove the steps, once the artifact is complete, unless they are another process's."""
        # From the last to the first, so that what is left is always a chain.
        if not self.root.is_symlink() and not is_lost(self._lease):
            _unlink(step_files(self.root))

    def clear(self) -> bool:
        """Remove the folder and its steps unless a process is in it; return whether it is gone."""
        if self.root.is_symlink():
            return False
        if self.root.is_dir():
            with contextlib.suppress(BlockingIOError, StorageError), self.alone(waiting=None):
                self.remove_steps()
        return not self.root.exists()

    def holds_other_files(self) -> bool:
        """Whether something in the folder is not cogedit's, so that the folder stays."""
        others = {*self.root.iterdir()}
        others -= {*step_files(self.root), *temporary_files(self.root)}
        if is_lease(self._lease):
            others.discard(self._lease)
        # A half-written file that became a step since it was listed is nobody's.
        return any(map(os.path.lexists, others))

    @property
    def _lease(self) -> Path:
        return self.root / "lease"


def made_together(folder: Path, kind: ArtifactKind) -> list[Unfinished]:
    """The unfinished runs in a folder that make several artifacts of a kind together."""
    roots = sorted(folder.glob(f"{kind}s-*{UNFINISHED_SUFFIX}"))
    steps = [(root, newest_step(root)) for root in roots if not root.is_symlink()]
    return [Unfinished(root, step.makes) for root, step in steps if step is not None]


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()
