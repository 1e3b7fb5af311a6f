"""A file is hashed once while it does not change, and every change of it is seen."""

import hashlib
import os
import time

import pytest
from chains import make_chain

from cogedit.artifacts import read_artifact, read_record, verify_artifact, write_artifact
from cogedit.errors import ArtifactDamaged


@pytest.fixture
def path(tmp_path):
    return make_chain(tmp_path).paths["frames"]


@pytest.fixture
def hashes(monkeypatch):
    """The bytes that were hashed since the last look."""
    counted = []
    sha256 = hashlib.sha256

    class Counting:
        def __init__(self, data=b""):
            self._digest = sha256()
            self.update(data)

        def update(self, data):
            counted.append(len(data))
            self._digest.update(data)

        def digest(self):
            return self._digest.digest()

        def hexdigest(self):
            return self._digest.hexdigest()

    monkeypatch.setattr(hashlib, "sha256", Counting)

    def since():
        total = sum(counted)
        counted.clear()
        return total

    return since


def flip(path, index=-1):
    """Change one byte in place: size and inode stay."""
    content = bytearray(path.read_bytes())
    content[index] ^= 1
    with path.open("r+b") as file:
        file.write(content)


def rewritten(path):
    """The same artifact, written by this process."""
    artifact = read_artifact(path, "frames")
    write_artifact(path, artifact.tensors, artifact.record)
    return artifact.tensors["frames"].nbytes


def test_a_file_that_was_just_written_is_not_hashed_again(path, hashes):
    size = rewritten(path)
    assert hashes() >= size
    verify_artifact(path)
    read_artifact(path)
    assert hashes() < size


def test_a_change_right_after_the_write_is_seen(path):
    rewritten(path)
    flip(path)
    with pytest.raises(ArtifactDamaged, match=path.name):
        verify_artifact(path)


def test_an_old_file_is_hashed_once(path, hashes):
    an_hour_ago = time.time() - 3600
    os.utime(path, (an_hour_ago, an_hour_ago))
    hashes()
    verify_artifact(path)
    once = hashes()
    verify_artifact(path)
    size = read_artifact(path, "frames").tensors["frames"].nbytes
    assert once >= size > hashes()


@pytest.mark.parametrize("check", [verify_artifact, read_artifact])
def test_a_change_right_after_a_check_is_seen(path, check):
    flip(path)
    flip(path)  # whole again, and changed just now
    check(path)
    flip(path)
    with pytest.raises(ArtifactDamaged, match=path.name):
        check(path)


def test_a_header_that_changed_is_read_again(path):
    rewritten(path)
    read_record(path)
    flip(path, 40)
    with pytest.raises(ArtifactDamaged, match=path.name):
        read_record(path)
