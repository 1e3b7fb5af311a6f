"""Workspaces: reuse by content key, and the newest artifact."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cogedit.artifacts import (
    Workspace,
    content_key,
    default_workspace,
    newest_artifact,
    write_artifact,
)
from cogedit.errors import ArtifactDamaged, ArtifactMismatch, StorageError


def _workspace(root: Path) -> Workspace:
    workspace = Workspace(root)
    workspace.create()
    return workspace


def test_default_workspace() -> None:
    assert default_workspace(Path("/videos/my clip.v2.mp4")) == Path("my clip.v2.cogedit")


def test_find_by_content_key(chain: Any, tmp_path: Path) -> None:
    record = chain.records["frames"]
    workspace = Workspace(tmp_path / "deep" / "clip.cogedit")
    assert workspace.find(record) is None
    workspace.create()
    workspace.create()
    path = workspace.path_for(record)
    assert path.name == f"frames-{content_key(record)[:12]}.safetensors"
    write_artifact(path, chain.tensors["frames"], record)
    assert workspace.find(replace(record, tensors=())) == path
    other = replace(record, settings=replace(record.settings, resize_mode="pad"))
    assert workspace.find(other) is None


def test_find_refuses_a_damaged_or_swapped_file(chain: Any, tmp_path: Path) -> None:
    workspace = _workspace(tmp_path / "clip.cogedit")
    record = chain.records["latents"]
    path = workspace.path_for(record)
    good = chain.paths["latents"].read_bytes()
    for content in (good[:-1] + bytes([good[-1] ^ 1]), good[:50], b"", b"\0" * 64):
        path.write_bytes(content)
        with pytest.raises(ArtifactDamaged) as caught:
            workspace.find(record)
        assert caught.value.hint.endswith(f"rm {shlex.quote(str(path))}")
    chain.copy("frames", path)
    with pytest.raises(ArtifactMismatch, match=path.name) as mismatch:
        workspace.find(record)
    assert mismatch.value.hint == caught.value.hint
    path.unlink()
    assert workspace.find(record) is None


def test_newest_passes_over_what_it_cannot_read(chain: Any, tmp_path: Path) -> None:
    assert newest_artifact([tmp_path], "trajectory") is None
    old = _workspace(tmp_path / "old.cogedit")
    new = _workspace(tmp_path / "new.cogedit")
    good = chain.copy("trajectory", old.path_for(chain.records["trajectory"]))
    newer = chain.copy("trajectory", new.root / "trajectory-000000000000.safetensors")
    bad = new.root / "trajectory-ffffffffffff.safetensors"
    bad.write_bytes(good.read_bytes()[:300])
    chain.copy("latents", new.root / "trajectory-eeeeeeeeeeee.safetensors")
    (new.root / "trajectory-dddddddddddd.safetensors").mkdir()
    (new.root / "trajectory-cccccccccccc.safetensors").symlink_to("nowhere")
    (tmp_path / "file.cogedit").write_bytes(b"")
    os.utime(good, (1, 1))
    os.utime(newer, (2, 2))
    assert newest_artifact([new.root], "trajectory") == newer
    assert newest_artifact([old.root], "trajectory") == good
    assert newest_artifact([old.root], "edit") is None
    everywhere = [*tmp_path.iterdir()]
    assert newest_artifact(everywhere, "trajectory") == newer
    os.utime(good, (3, 3))
    assert newest_artifact(everywhere, "trajectory") == good


def test_create_where_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file"):
        Workspace(tmp_path / "file" / "clip.cogedit").create()
    with pytest.raises(StorageError):
        Workspace(tmp_path / "file").create()
