"""Leases: what one process does at a time, on any file system that processes share.

A lease is a folder with one empty file in it, which is named after the holder. To make a folder
succeeds for one process alone on every file system; locks do not: those of GPFS, and of NFS with
local locking, are seen on one machine only. The holder touches its file every 30 seconds.

A lease whose holder has ended is taken over: at once where the holder ran on this machine, and
elsewhere after three minutes of silence by the clock of the file system, which stamps the file and
a folder beside it that is touched to compare. The clocks of the machines are not asked. A takeover
removes the file of that one holder, so of several processes that try it one gets the lease.

A holder that was stopped for so long, and comes back, finds its file gone. A lost lease costs work
that is done twice, and never a wrong file: files are written whole, under names of their content,
and in a folder that it has lost a process removes and writes nothing more (`is_lost`).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import math
import os
import platform
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from cogedit.artifacts.atomic import storage_error
from cogedit.disk import make_folder

HEARTBEAT = 30.0
"""Seconds between two touches."""

SILENCE = 180.0
"""Seconds without a touch after which a holder on another machine counts as dead."""

FIRST_POLL, LONGEST_POLL = 0.05, 2.0
"""Seconds between two attempts to get a lease."""

_MOST_REFUSED = 100
"""Attempts in a row in which a name is not there though its folder is, before that is an error."""

HOLDER_NAME = re.compile(r"([0-9a-f]{16})\.(\d{1,9})\.(\d{1,18})\.[0-9a-f]{16}")
"""Machine, process, when that started, and what makes every lease another."""

_held: dict[Path, Lease] = {}
_watched: dict[str, tuple[float, float]] = {}  # file: its stamp, and since when it is known
_found_dead: dict[str, float] = {}  # holder that stood still: its stamp then
_seen_alive: dict[str, float] = {}  # holder elsewhere: when its stamp was seen to move


class Lease:
    """A lease that this process took."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, path / name_of_holder()
        self.was_refused = False  # nothing could be made in a folder that is there
        self._is_released = threading.Event()

    @property
    def is_lost(self) -> bool:
        """Whether another process has taken it over."""
        try:
            self._file.stat()
        except FileNotFoundError:
            return True
        except OSError:  # a disk that does not answer now
            return False
        return False

    def take(self) -> bool:
        """Take it if no process has it. Raises `OSError` where the system refuses."""
        try:
            self._path.mkdir()
        except FileExistsError:
            return False
        except FileNotFoundError:
            self.was_refused = self._path.parent.is_dir()
            return False
        try:
            os.close(os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            # Between the two lines another process may have taken the empty folder for a leftover.
            if [*self._path.iterdir()] == [self._file]:
                threading.Thread(
                    target=_keep, args=(self._file, self._is_released), name="lease", daemon=True
                ).start()
                _held[self._path] = self
                return True
        except FileNotFoundError:
            self.was_refused = self._path.is_dir()
            return False
        except BaseException:
            self.release()
            raise
        self.release()
        return False

    def release(self) -> None:
        """Give it back; one that was lost is left to the process that has it."""
        self._is_released.set()
        if _held.get(self._path) is self:
            del _held[self._path]
        with contextlib.suppress(OSError):
            self._file.unlink()
        with contextlib.suppress(OSError):  # it is another's
            self._path.rmdir()


def name_of_holder() -> str:
    """Name this process, another way each time."""
    pid = os.getpid()
    return f"{_machine()}.{pid}.{_start_of(pid) or 0}.{secrets.token_hex(8)}"


def acquire(path: Path, *, waiting: Callable[[], None] | None, is_watched: bool = True) -> Lease:
    """Take the lease of this path, to be released.

    The folder that it lies in is made as often as needed: the process that holds the lease may
    remove it when it is done.

    Args:
        path: Where the lease is.
        waiting: Called at every look while another process holds it; None does not wait.
        is_watched: Whether a silent holder is watched before it counts as dead (`_stands_still`).
            Without waiting that takes several attempts.

    Raises:
        BlockingIOError: Another process holds it, and `waiting` is None.
        OSError: The system refuses, or something else is at this path.
    """
    pause, num_refused = FIRST_POLL, 0
    while True:
        make_folder(path.parent)
        lease = Lease(path)
        with contextlib.suppress(FileNotFoundError):  # gone since that line
            if lease.take():
                return lease
            is_gone = _take_from_the_dead(path, is_watched=is_watched)
            if is_gone and not lease.was_refused:
                continue
        num_refused = num_refused + 1 if lease.was_refused else 0
        if num_refused == _MOST_REFUSED:
            raise _refused(path)
        if waiting is not None:
            waiting()
        elif not lease.was_refused:
            raise BlockingIOError(f"{path} is held by another process")
        time.sleep(FIRST_POLL if lease.was_refused else pause)
        pause = min(1.5 * pause, LONGEST_POLL)


def _refused(path: Path) -> OSError:
    """Say that nothing can be made in a folder; Windows says so where a path is too long for it."""
    length = len(str(path.absolute())) + len(name_of_holder()) + 1
    reason = "a file that is made in it cannot be found, or has too long a path for this system"
    return OSError(errno.EIO, f"{reason}: {length} characters", str(path))


def is_lost(path: Path) -> bool:
    """Whether this process took the lease of a path, and another process has it by now."""
    lease = _held.get(path)
    return lease is not None and lease.is_lost


@contextlib.contextmanager
def writing_alone(
    path: Path, *, waiting: Callable[[], None] | None = None, until_free: bool = False
) -> Iterator[bool]:
    """Keep other processes from writing a file while the block runs, if none writes it now.

    Yields whether no other process does. Raises `StorageError` where the folder cannot be written.

    Args:
        path: The file.
        waiting: Called at every look while it is not known whether a holder on another machine, or
            before this one was started again, is at work: minutes; None takes it that it is.
        until_free: Wait also for one that is at work, which `waiting` must be given for.
    """
    take = acquire if until_free else _acquire_unless_alive
    try:
        lease = take(lease_of(path), waiting=waiting)
    except BlockingIOError:
        yield False
        return
    except OSError as error:
        raise storage_error(path, error, "write") from error
    try:
        yield True
    finally:
        lease.release()


def _acquire_unless_alive(path: Path, *, waiting: Callable[[], None] | None) -> Lease:
    """Take a lease unless its holder gives a sign of life; as `acquire`, which does not wait."""
    first: dict[str, float] = {}
    while True:
        try:
            return acquire(path, waiting=None)
        except BlockingIOError:
            stamps = _stamps_elsewhere(path)
            if waiting is None or not (stamps or first):
                raise
            if first and stamps and stamps != first:
                _seen_alive.update(dict.fromkeys(stamps, time.monotonic()))
                raise
            now = time.monotonic()
            if any(now - _seen_alive.get(holder, -math.inf) < SILENCE for holder in stamps):
                raise
            first = stamps  # none: given back since that line
        waiting()
        time.sleep(min(LONGEST_POLL, HEARTBEAT))


def _stamps_elsewhere(path: Path) -> dict[str, float]:
    """When holders on other machines have touched their files here."""
    with contextlib.suppress(OSError):
        return {
            _holder_of(file): file.stat().st_mtime
            for file in path.iterdir()
            if not file.name.startswith(_machine())
        }
    return {}


def _holder_of(file: Path) -> str:
    """Machine, process and its start: what all leases of a process have in common."""
    return file.name.rpartition(".")[0]


def lease_of(path: Path) -> Path:
    """The lease of whoever writes a file, beside it."""
    name = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    return path.parent / f".cogedit-{name}.lease"


def is_lease(path: Path) -> bool:
    """Whether a folder is a lease, of whomever: there is nothing else in it."""
    if path.is_symlink() or not path.is_dir():
        return False
    with contextlib.suppress(FileNotFoundError):  # given back since that line
        return all(HOLDER_NAME.fullmatch(file.name) for file in path.iterdir())
    return False


def are_held(leases: Iterable[Path]) -> bool:
    """Whether a process that is at work, on any machine, holds one of these leases."""
    for path in filter(is_lease, leases):
        with contextlib.suppress(OSError):
            now = file_system_time(path.parent)
            if not all(_has_ended(file) or _is_silent(file, now) for file in path.iterdir()):
                return True
    return False


def file_system_time(folder: Path) -> float:
    """What time it is for the file system of a folder, which is touched to find out."""
    os.utime(folder)
    return folder.stat().st_mtime


def _keep(file: Path, is_released: threading.Event) -> None:
    """Touch the file of a holder until it is released or lost."""
    while not is_released.wait(HEARTBEAT):
        try:
            os.utime(file)
        except FileNotFoundError:
            return
        except OSError:  # a disk that does not answer now
            continue


def _take_from_the_dead(path: Path, *, is_watched: bool) -> bool:
    """Remove a lease whose holder has ended or is silent, or an empty one; whether it is gone."""
    if path.is_symlink():
        raise FileExistsError(errno.EEXIST, "a link is in the place of a folder of cogedit")
    # First the time: whoever is stopped between the two must not see silence.
    now = file_system_time(path.parent)
    for file in path.iterdir():
        if not HOLDER_NAME.fullmatch(file.name):
            raise FileExistsError(errno.EEXIST, f"it holds {file.name}, which is not cogedit's")
        is_dead = _is_silent(file, now) and (not is_watched or _stands_still(file))
        if not is_dead and not _has_ended(file):
            return False
        file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another process was faster
        path.rmdir()
    return not path.exists()


def _is_silent(file: Path, now: float) -> bool:
    return abs(now - file.stat().st_mtime) > SILENCE


def _stands_still(file: Path) -> bool:
    """Whether the stamp of a silent holder has not changed for longer than between two touches.

    On file systems that stamp by the clocks of their clients, as SMB and Lustre do, a holder with a
    wrong clock may seem silent; but its stamp moves.
    """
    stamp, holder = file.stat().st_mtime, _holder_of(file)
    if stamp <= _found_dead.get(holder, -math.inf) + HEARTBEAT:
        return True  # of its other leases nothing else is to be seen
    known, since = _watched.get(file.name, (None, 0.0))
    if known != stamp:
        _watched[file.name] = stamp, time.monotonic()
        return False
    if time.monotonic() - since <= 1.5 * HEARTBEAT:
        return False
    _found_dead[holder] = stamp
    return True


def _has_ended(file: Path) -> bool:
    """Whether the holder is a process of this machine that runs no more."""
    found = HOLDER_NAME.fullmatch(file.name)
    if found is None or found[1] != _machine():
        return False
    pid = int(found[2])
    try:
        if sys.platform == "win32":  # where the call below would interrupt it
            import psutil

            if not psutil.pid_exists(pid):
                return True
        else:
            os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # of another user
        pass
    return _start_of(pid) not in (None, int(found[3]))


@functools.cache
def _machine() -> str:
    """Stands for this machine since it was started, and the container that counts its processes."""
    known = [platform.node()]
    with contextlib.suppress(OSError):
        known.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        known.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:16]


def _start_of(pid: int) -> int | None:
    """When a process started, in ticks since the machine did; None where the system does not say.

    It is 0 of one that has ended and is still listed. Another process may get its number later.
    Where there is no /proc, the ticks are hundredths of a second by the clock.
    """
    if not Path("/proc/self/stat").exists():
        return _start_by_psutil(pid)
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    state, *fields = text.rpartition(")")[2].split()
    return 0 if state in "ZX" else int(fields[18])


def _start_by_psutil(pid: int) -> int | None:
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return 0
        # On a Mac it moves with the clock, by which it is reckoned.
        return None if sys.platform == "darwin" else int(100 * process.create_time())
    except psutil.Error:
        return None
