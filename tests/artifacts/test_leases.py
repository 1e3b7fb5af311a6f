"""Leases: one process at a time, whatever locks and clocks do, and nothing is left behind."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from cogedit.artifacts import leases
from cogedit.artifacts.leases import acquire, are_held, is_lease, is_lost, writing_alone
from cogedit.errors import StorageError

HOLDER = """
import platform, sys
from pathlib import Path
platform.node = lambda node=platform.node(): node + sys.argv[2]
from cogedit.artifacts.leases import acquire, is_lost
path = Path(sys.argv[1])
lease = acquire(path, waiting=None)
print("held", flush=True)
sys.stdin.readline()
print(is_lost(path))
lease.release()
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lease"


@contextmanager
def another_process(path, *, elsewhere=False):
    """A process that holds the lease, here or on a machine of another name."""
    command = [sys.executable, "-c", HOLDER, str(path), "-elsewhere" if elsewhere else ""]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def age(path, seconds):
    """Let the holder of a lease seem to have been silent for so long."""
    [file] = path.iterdir()
    stamp = file.stat().st_mtime - seconds
    os.utime(file, (stamp, stamp))


def taken(path):
    """Take the lease if it can be had, on the second look at the latest."""
    for _ in range(2):
        with contextlib.suppress(BlockingIOError):
            return acquire(path, waiting=None)
        time.sleep(2 * leases.HEARTBEAT if leases.HEARTBEAT < 1 else 0)
    return None


def leave_dead(path, lease):
    """Leave a lease as a process that was killed."""
    end = time.monotonic() + 600
    while len(files := [*path.iterdir()]) > 1:  # one more attempt, which gives up in a moment
        assert time.monotonic() < end
        time.sleep(0)
    [file] = files
    machine, _, _, random = file.name.split(".")
    dead = f"{machine}.{os.getpid()}.1.{random}"  # of a process that had this number before
    file.rename(file.with_name(dead))
    lease.release()


def is_free(path):
    lease = taken(path)
    if lease is not None:
        lease.release()
    return lease is not None


@pytest.fixture
def short_watch(monkeypatch):
    """A silent holder need not be watched for long."""
    monkeypatch.setattr(leases, "HEARTBEAT", 0.01)


def test_it_is_held_by_one_and_leaves_nothing(path):
    lease = acquire(path, waiting=None)
    assert is_lease(path)
    assert are_held([path])
    assert not is_lost(path)
    with pytest.raises(BlockingIOError):
        acquire(path, waiting=None)
    lease.release()
    assert not path.exists()
    assert not are_held([path])
    assert is_free(path)
    assert not list(path.parent.iterdir())


def test_a_process_that_was_killed_holds_nothing(path):
    with another_process(path) as process:
        assert not is_free(path)
        process.kill()
        process.wait()
        assert is_lease(path)
        assert not are_held([path])
        assert is_free(path)


def test_a_process_that_was_killed_and_is_not_reaped_holds_nothing(path):
    with another_process(path) as process:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert is_free(path)


def test_a_killed_process_of_another_machine_holds_it_for_three_minutes(path, short_watch):
    with another_process(path, elsewhere=True) as process:
        process.kill()
        process.wait()
    age(path, leases.SILENCE / 2)
    assert are_held([path])
    assert not is_free(path)
    age(path, leases.SILENCE)
    assert not are_held([path])
    assert is_free(path)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_stopped_process_that_comes_back_finds_it_lost(path, short_watch, elsewhere):
    with another_process(path, elsewhere=elsewhere) as process:
        process.send_signal(signal.SIGSTOP)
        assert not is_free(path), "nothing is taken from who is silent for a moment"
        age(path, 2 * leases.SILENCE)
        lease = taken(path)
        process.send_signal(signal.SIGCONT)
        said, _ = process.communicate("\n")
        assert (said, process.returncode) == ("True\n", 0)
        assert not lease.is_lost, "and gives nothing back that is another's"
        lease.release()


@pytest.mark.parametrize("hours", [-1, 1])
def test_clocks_an_hour_apart(path, short_watch, monkeypatch, hours):
    """This machine's clock is not asked, and a stamp by another's wrong clock still moves."""
    late = time.time() + 3600 * hours
    monkeypatch.setattr(time, "time", lambda: late)
    with another_process(path, elsewhere=True) as process:
        assert not is_free(path)
        age(path, leases.SILENCE / 2)
        assert not is_free(path)
        for _ in range(5):
            age(path, -3600 * hours)
            assert not are_held([path]), "by its stamp it is silent"
            with pytest.raises(BlockingIOError):
                acquire(path, waiting=None)
        process.kill()
        process.wait()
        assert is_free(path)


def test_of_many_one_holds_it(path, monkeypatch):
    """Also where all of them find it as a killed process left it."""
    monkeypatch.setattr(leases, "FIRST_POLL", 0.001)
    monkeypatch.setattr(leases, "LONGEST_POLL", 0.004)
    inside, most, count = [], [], 25
    begin = threading.Barrier(4)

    def work(number):
        begin.wait()
        for _ in range(count):
            lease = acquire(path, waiting=lambda: None)
            inside.append(number)
            most.append(len(inside))
            inside.remove(number)
            leave_dead(path, lease) if number % 2 else lease.release()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * (4 * count)
    assert is_free(path)


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_not_a_lease_stays(path, kind):
    other = path.parent / "other"
    other.mkdir()
    (other / "notes.txt").write_bytes(b"mine")
    match kind:
        case "file":
            path.write_bytes(b"mine")
        case "folder":
            other.rename(path)
        case "link":
            path.symlink_to(other)
    before = sorted(path.parent.rglob("*"))
    assert not is_lease(path)
    with pytest.raises(OSError, match=r"Not a directory|not cogedit's|link"):
        acquire(path, waiting=None)
    assert sorted(path.parent.rglob("*")) == before


@pytest.mark.parametrize("call", ["mkdir", "stat"])
def test_the_folder_of_a_lease_may_go_at_any_moment(tmp_path, monkeypatch, call):
    """The process that holds the lease removes the folder when it is done."""
    folder = tmp_path / "made.unfinished"
    folder.mkdir()
    real, there = getattr(os, call), [folder]

    def raced(path, *args, **kwargs):
        try:
            return real(path, *args, **kwargs)
        finally:
            if path in there:
                there.remove(folder)
                folder.rmdir()

    monkeypatch.setattr(os, call, raced)
    acquire(folder / "lease", waiting=lambda: None).release()
    assert not there


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_folder_holds_no_lease(tmp_path, kind):
    folder = tmp_path / "made.unfinished"
    folder.write_text("not ours") if kind == "file" else folder.symlink_to(tmp_path / "none")
    with pytest.raises(FileExistsError):
        acquire(folder / "lease", waiting=None)
    assert [*tmp_path.iterdir()] == [folder]


def test_an_output_is_written_by_one(tmp_path):
    output = tmp_path / "out.mp4"
    with writing_alone(output) as alone:
        assert alone
        with writing_alone(output) as second, writing_alone(tmp_path / "other.mp4") as other:
            assert (second, other) == (False, True)
        [left] = tmp_path.iterdir()
        assert is_lease(left)
    assert not list(tmp_path.iterdir())
    with pytest.raises(StorageError, match="out"), writing_alone(tmp_path / "a/b/out.mp4"):
        pass


@pytest.mark.parametrize("is_dead", [True, False])
def test_one_look_does_not_tell_who_is_dead_elsewhere(tmp_path, short_watch, is_dead):
    """A command that is run again on another machine takes over, unless there is a sign of life."""
    output, said = tmp_path / "out.mp4", []
    with another_process(leases.lease_of(output), elsewhere=True) as process:
        process.kill()
        process.wait()
    [lease] = tmp_path.iterdir()
    age(lease, 2 * leases.SILENCE)

    def waiting():
        said.append("waiting")
        if not is_dead:
            age(lease, -leases.SILENCE)

    with writing_alone(output, waiting=waiting) as alone:
        assert alone == is_dead
    assert said
    if not is_dead:  # and who was seen alive is not waited for again
        said.clear()
        with writing_alone(output, waiting=waiting) as alone:
            assert (alone, said) == (False, [])


def test_what_one_lease_shows_of_its_holder_holds_for_all(tmp_path, short_watch, monkeypatch):
    outputs = [tmp_path / name for name in ("a.mp4", "b.mp4")]
    paths = [leases.lease_of(output) for output in outputs]
    with another_process(paths[0], elsewhere=True) as process:
        process.kill()
        process.wait()
    [file] = paths[0].iterdir()
    holder, _, random = file.name.rpartition(".")
    paths[1].mkdir()
    (paths[1] / f"{holder}.{random[::-1]}").touch()
    for path in paths:
        age(path, 2 * leases.SILENCE)
    assert is_free(paths[0])
    monkeypatch.setattr(leases, "HEARTBEAT", 3600)
    acquire(paths[1], waiting=None).release()


@pytest.mark.parametrize("waiting", [None, lambda: None])
def test_a_path_that_the_system_does_not_take_is_an_error(path, monkeypatch, waiting):
    """Windows makes a folder of 240 characters, and says of a file in it that there is no such."""
    make = os.open

    def make_unless_in_a_lease(file, *args, **options):
        if str(file).startswith(f"{path}{os.sep}"):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(file))
        return make(file, *args, **options)

    monkeypatch.setattr(os, "open", make_unless_in_a_lease)
    monkeypatch.setattr(leases, "FIRST_POLL", 0)
    with pytest.raises(OSError, match=r"too long a path for this system: \d+ char") as caught:
        acquire(path, waiting=waiting)
    assert caught.value.filename == str(path)
    assert not path.exists()


def test_a_folder_in_which_none_can_be_made_is_an_error(path, monkeypatch):
    def is_refused(folder, *args, **options):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(folder))

    monkeypatch.setattr(type(path), "mkdir", is_refused)
    monkeypatch.setattr(leases, "FIRST_POLL", 0)
    with (
        pytest.raises(StorageError, match=r"cannot write .* cannot be found"),
        writing_alone(path, waiting=lambda: None, until_free=True),
    ):
        pass


def test_a_lease_that_comes_and_goes_is_waited_for(path, monkeypatch):
    """A shared disk may list what is gone, and many processes may take turns: however often."""
    first, iterdir, left = acquire(path, waiting=None), type(path).iterdir, [300]

    def is_gone(folder):
        if folder == path and left[0]:
            left[0] -= 1
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(folder))
        return iterdir(folder)

    monkeypatch.setattr(type(path), "iterdir", is_gone)
    monkeypatch.setattr(leases, "FIRST_POLL", 0)
    monkeypatch.setattr(leases, "LONGEST_POLL", 0)
    with pytest.raises(BlockingIOError):
        acquire(path, waiting=None)
    acquire(path, waiting=lambda: left[0] or first.release()).release()
    assert left == [0]


def test_where_there_is_no_proc_a_number_that_another_process_has_is_known(path, monkeypatch):
    """As on a Mac: a killed holder's number is that of another process by now."""
    acquire(path, waiting=None).release()  # the machine's name is known from here on
    exists = type(path).exists
    monkeypatch.setattr(
        type(path), "exists", lambda self: not str(self).startswith("/proc/") and exists(self)
    )
    lease = acquire(path, waiting=None)
    assert not is_free(path), "it is held by this process"
    leave_dead(path, lease)
    assert not are_held([path])
    assert is_free(path)
