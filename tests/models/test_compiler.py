"""The folder from which torch's compiler runs code."""

import os
import stat
import tempfile
from pathlib import Path

import pytest
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from cogedit.errors import UsageError
from cogedit.models.compiler import compiling


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where torch keeps compiled code by itself, in a /tmp of the test's."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("LOGNAME", "someone")
    return tmp_path / Path(default_cache_dir()).name


@pytest.mark.parametrize("before", [None, 0o777, 0o700])
def test_nobody_else_writes_there(folder, before):
    if before is not None:
        folder.mkdir()
        folder.chmod(before)
    with compiling():
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_another_user_s_is_refused(folder, monkeypatch):
    folder.mkdir()
    owner = folder.stat().st_uid
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(UsageError, match=r"belongs to another user .*TORCHINDUCTOR_CACHE_DIR"):
        compiling().__enter__()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder.parent / "named"))
    with compiling():
        pass


def test_what_others_may_have_planted_is_refused(folder):
    folder.mkdir()
    (folder / "planted.so").touch()
    folder.chmod(0o777)
    with pytest.raises(UsageError, match="others may have written to"):
        compiling().__enter__()


def test_a_link_is_refused(folder):
    (folder.parent / "elsewhere").mkdir()
    folder.symlink_to(folder.parent / "elsewhere")
    with pytest.raises(UsageError, match="is a link"):
        compiling().__enter__()
    (folder.parent / "elsewhere").rmdir()  # it leads nowhere now
    with pytest.raises(UsageError, match="cannot keep its code"):
        compiling().__enter__()
