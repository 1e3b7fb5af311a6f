"""What torch's compiler is told, and the folder from which it runs code."""

import os
import stat
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from cogedit.errors import UsageError
from cogedit.models.compiler import compile_options, compiling
from cogedit.models.placement import ScaledLinear


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


@pytest.mark.slow
def test_a_product_with_integers_gets_no_kernel_for_few_tokens(monkeypatch, tmp_path):
    from torch._dynamo.utils import counters
    from torch._inductor import config

    linear = nn.Linear(64, 64).bfloat16().requires_grad_(False)
    assert compile_options(linear) == {}
    block = nn.Sequential(ScaledLinear.of(linear))
    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = block(x)
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    quick = config.patch({"compile_threads": 1, "cpp.vec_isa_ok": False})
    with quick:
        found = torch.compile(block.forward, options=compile_options(block))(x)
    torch._dynamo.reset()
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["inductor"]["woq_matcher_count"]
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
