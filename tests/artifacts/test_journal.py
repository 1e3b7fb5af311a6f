"""JSON lines that runs append to: never through a link, never into what is no file of theirs."""

import errno
import json
import os

import pytest

from cogedit.artifacts import append_line, check_journal, read_lines
from cogedit.errors import StorageError, UsageError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs.jsonl"


def is_object(line):
    return line.startswith(b"{")


def test_lines_come_back(path):
    check_journal(path, is_object, holds="objects")
    append_line(path, b'{"a": 1}')
    append_line(path, b'{"b": 2}')
    assert path.read_bytes() == b'{"a": 1}\n{"b": 2}\n'
    assert read_lines(path) == [b'{"a": 1}', b'{"b": 2}', b""]
    check_journal(path, is_object, holds="objects")


def test_a_half_line_is_closed_before_the_next(path):
    path.write_bytes(b'{"a": 1}\n{"b": ')
    append_line(path, b'{"c": 3}')
    assert path.read_bytes() == b'{"a": 1}\n{"b": \n{"c": 3}\n'


def test_zeros_that_a_crash_left_are_no_foreign_line(path):
    path.write_bytes(b'{"a": 1}\n' + bytes(40) + b"\n" + bytes(7) + b'{"b": 2}\n')
    check_journal(path, is_object, holds="objects")
    path.write_bytes(bytes(40))
    with pytest.raises(UsageError, match="does not hold objects"):
        check_journal(path, is_object, holds="objects")


def test_a_write_that_stops_in_the_middle_spoils_no_other_line(path, monkeypatch):
    append_line(path, b'{"a": 1}')
    write, written = os.write, []

    def full(descriptor, data):
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(data)
        return write(descriptor, bytes(data[:5]))

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(StorageError, match=r"runs\.jsonl"):
            append_line(path, b'{"b": 2}')
    append_line(path, b'{"c": 3}')
    lines = path.read_bytes().splitlines()
    assert [json.loads(lines[0]), json.loads(lines[-1])] == [{"a": 1}, {"c": 3}]


def link(path):
    (path.parent / "mine").write_bytes(b'{"not": "ours"}\n')
    path.symlink_to("mine")


def dangling_link(path):
    path.symlink_to("mine")


def pipe(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/full")


def folder(path):
    path.mkdir()


@pytest.mark.parametrize("make", [link, dangling_link, pipe, device, folder])
def test_what_is_no_file_is_refused_at_once(path, make):
    make(path)
    before = sorted(os.scandir(path.parent), key=lambda entry: entry.name)
    for use in (
        lambda: append_line(path, b"{}"),
        lambda: read_lines(path),
        lambda: check_journal(path, is_object, holds="objects"),
    ):
        with pytest.raises(StorageError, match=r"runs\.jsonl"):
            use()
    after = sorted(os.scandir(path.parent), key=lambda entry: entry.name)
    assert [entry.name for entry in after] == [entry.name for entry in before]
    if make is link:
        assert path.read_bytes() == b'{"not": "ours"}\n'


@pytest.mark.parametrize("content", [b"\0\0\0\x18ftypisom" * 9, b"{}\nvideo,prompt\n", b"video"])
def test_a_file_that_holds_something_else_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"runs\.jsonl"):
        check_journal(path, is_object, holds="objects")
    assert path.read_bytes() == content
