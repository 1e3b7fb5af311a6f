"""`cogedit cache`: shows, checks and removes, and leaves alone what a process works with."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from chains import forged
from typer.testing import CliRunner

from cogedit.artifacts import (
    StepRecord,
    Unfinished,
    Workspace,
    atomic_write,
    content_key,
    in_use,
    write_step,
)
from cogedit.artifacts.listing import survey
from cogedit.cli import app
from cogedit.progress import StepInfo


@pytest.fixture
def folder(chain, tmp_path, monkeypatch):
    """A workspace with four artifacts, a run that did not finish, and leftovers of two kills."""
    monkeypatch.chdir(tmp_path)
    folder = Path("clip.cogedit")
    folder.mkdir()
    for kind, record in chain.records.items():
        shutil.copy(chain.paths[kind], Workspace(folder).path_for(record))
    unfinished = Unfinished.of(folder, "trajectory", ["ab" * 32])
    add_step(unfinished, 3)
    finished = Unfinished.of(folder, "edit", [content_key(chain.records["edit"])])
    add_step(finished, 0)
    Unfinished.of(folder, "latents", ["cd" * 32]).root.mkdir()
    (folder / ".00ff00ff00ff00ff.tmp").write_bytes(b"half")
    (folder / ".cogedit-00ff00ff00ff00ff.mp4").write_bytes(b"half a video")
    (folder / ".cogedit-01fe01fe01fe01fe").mkdir()
    (folder / ".cogedit-01fe01fe01fe01fe" / "frame-0000.png").write_bytes(b"the first of many")
    (folder / "my edit.mp4").write_bytes(b"a video")
    return folder


def add_step(unfinished, index):
    record = StepRecord(unfinished.makes, StepInfo(index, 50, 19), None)
    write_step(unfinished.root, {"sample": torch.zeros(1, 1, 1, 2, 2)}, record)


def cache(*args, code=0):
    result = CliRunner().invoke(app, ["cache", *map(str, args)])
    assert result.exit_code == code, result.output
    return result


def found(*args):
    entries = json.loads(cache("ls", "--json", *args).stdout)["entries"]
    return {Path(entry["path"]).name: entry for entry in entries}


def states(*args):
    return sorted(entry["state"] for entry in found(*args).values())


UNTOUCHED = ["unfinished", "whole", "whole", "whole", "whole"]


def test_ls_shows_what_is_there(folder, chain):
    entries = found()
    edit = Workspace(folder).path_for(chain.records["edit"]).name
    assert entries[edit]["about"] == chain.records["edit"].settings.prompt
    assert entries[edit]["size"] == chain.paths["edit"].stat().st_size
    unfinished = entries["trajectory-abababababab.unfinished"]
    assert unfinished["state"] == "unfinished"
    assert unfinished["about"].startswith("step 4 of 50;")
    assert states() == ["leftover"] * 5 + UNTOUCHED
    text = cache("ls")
    assert len(text.stdout.splitlines()) == 10
    assert text.stderr.startswith("10 entries, ")
    assert "my edit.mp4" not in text.stdout


def test_ls_elsewhere(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    assert found(other) == {}
    assert len(found(other, folder)) == 10
    refused = cache("ls", tmp_path / "missing", code=2)
    assert str(tmp_path / "missing") in refused.stderr
    assert refused.stdout == ""


def test_verify_finds_the_damaged_one(folder, chain):
    assert cache("verify").stdout.count("whole") == 4
    path = Workspace(folder).path_for(chain.records["trajectory"])
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    result = cache("verify", "--json", code=4)
    rows = json.loads(result.stdout)["entries"]
    [damaged] = [row for row in rows if row["state"] == "damaged"]
    assert damaged["path"] == str(path)
    assert "has digest" in damaged["about"]
    assert f"error: damaged: 1 of {len(rows)} artifacts" in result.stderr
    assert "`cogedit cache prune --damaged`" in result.stderr
    assert json.loads(cache("prune", "--damaged", "--json").stdout)["removed"][0] == damaged
    assert not path.exists()
    assert cache("verify").stdout.count("whole") == 3


def test_prune_removes_leftovers_alone(folder):
    result = cache("prune", "--dry-run")
    assert len(result.stdout.splitlines()) == 5
    assert len(found()) == 10
    assert cache("prune").stdout == result.stdout
    assert states() == UNTOUCHED
    assert (folder / "my edit.mp4").exists()
    assert json.loads(cache("prune", "--json").stdout)["removed"] == []
    assert cache("prune").stdout == ""


def test_prune_removes_what_is_named(folder, chain):
    cache("prune", "--unfinished", "--kind", "trajectory", "--kind", "latents")
    kinds = sorted(entry["kind"] for entry in found().values())
    assert kinds == ["edit", "frames"]
    path = Workspace(folder).path_for(chain.records["edit"])
    os.truncate(path, path.stat().st_size - 1)
    cache("prune")
    assert path.exists()
    cache("prune", "--damaged")
    assert not path.exists()


def test_prune_leaves_a_workspace_alone_where_a_process_works(folder):
    with in_use(folder):
        result = cache("prune", "--unfinished", "--kind", "edit")
        assert result.stdout == ""
        assert "clip.cogedit is in use" in result.stderr
        assert json.loads(cache("prune", "--json").stdout)["in_use"] == ["clip.cogedit"]
    assert states() == ["leftover"] * 5 + UNTOUCHED


@pytest.mark.parametrize("place", [".cogedit-0123456789abcdef.lease", "{}/lease"])
def test_prune_leaves_a_workspace_alone_where_another_machine_works(folder, place):
    """Which no lock on the folder tells here. A lease whose holder is silent for long goes."""
    [unfinished] = folder.glob("trajectory-*.unfinished")
    lease = folder / place.format(unfinished.name)
    lease.mkdir()
    holder = lease / f"{'0' * 16}.1.1.{'0' * 16}"
    holder.touch()
    assert json.loads(cache("prune", "--json").stdout)["in_use"] == ["clip.cogedit"]
    os.utime(holder, (0, 0))
    cache("prune", "--unfinished")
    assert not lease.exists()
    assert states() == ["whole"] * 4


def test_prune_leaves_a_file_alone_while_it_is_written(folder):
    with atomic_write(folder / "new.json") as file:
        file.write(b"half")
        assert "in use" in cache("prune").stderr
    assert len(cache("prune").stdout.splitlines()) == 5
    assert (folder / "new.json").read_bytes() == b"half"


def test_without_locks_only_what_is_old_goes(folder, monkeypatch):
    monkeypatch.setattr("fcntl.flock", lambda descriptor, operation: None)
    result = cache("prune")
    assert result.stdout == ""
    assert all(
        name in result.stderr for name in (".00ff00ff00ff00ff.tmp", ".cogedit-00ff00ff00ff00ff.mp4")
    )
    for name in (".00ff00ff00ff00ff.tmp", ".cogedit-00ff00ff00ff00ff.mp4"):
        os.utime(folder / name, (0, 0))
    assert len(cache("prune").stdout.splitlines()) == 2


@pytest.mark.parametrize("name", ["edit-0123456789ab.unfinished", ".cogedit-0123456789abcdef"])
def test_what_goes_while_it_is_listed_is_not_there(tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    listing = Path.iterdir

    def gone(path):
        path.rmdir()
        return listing(path)

    monkeypatch.setattr(Path, "iterdir", gone)
    assert survey(tmp_path) == []


def test_a_name_moves_no_cursor(folder):
    (folder / "x\x1b[31m\n.safetensors").write_bytes(b"not one")
    shown = cache("ls").stdout
    assert "\x1b" not in shown
    assert len(shown.splitlines()) == 11


def test_what_is_not_damaged_is_called_what_it_is(folder, chain, monkeypatch):
    """A newer record, a model's weights and a closed file are no damage, and stay."""
    content = chain.paths["frames"].read_bytes()
    for number, change in enumerate([{"schema": 2}, {"cogedit_version": "99.0.0", "extra": 1}]):
        path = folder / f"frames-0123456789a{number}.safetensors"
        path.write_bytes(forged(content, lambda record, header, new=change: record.update(new)))
    weights = safetensors.torch.save({"weight": torch.zeros(3)}, metadata={"format": "pt"})
    foreign = ["lora.safetensors", "edit-0123456789ab.safetensors"]
    for name in foreign:
        (folder / name).write_bytes(weights)
    (folder / "notes.safetensors").write_bytes(b"no safetensors at all")
    (folder / "gone.safetensors").symlink_to("nothing")
    closed = Workspace(folder).path_for(chain.records["latents"])
    refuse_to_open(closed, monkeypatch)
    empty = folder / "edit-ffffffffffff.safetensors"
    empty.write_bytes(b"")

    shown = cache("verify", "--json", code=4)
    states = {Path(row["path"]).name: row["state"] for row in json.loads(shown.stdout)["entries"]}
    assert [states[f"frames-0123456789a{number}.safetensors"] for number in (0, 1)] == ["newer"] * 2
    others = [*foreign, "notes.safetensors", "gone.safetensors"]
    assert [states[name] for name in others] == ["foreign"] * 4
    assert states[closed.name] == "unreadable"
    assert [name for name, state in states.items() if state == "damaged"] == [empty.name]
    assert "2 of 11" in shown.stderr
    assert "4 of 11" in shown.stderr

    removed = json.loads(cache("prune", "--damaged", "--kind", "edit", "--json").stdout)["removed"]
    edit = Workspace(folder).path_for(chain.records["edit"])
    names = {Path(row["path"]).name for row in removed if row["state"] != "leftover"}
    assert names == {empty.name, edit.name}
    assert cache("verify", code=7).stdout.count("whole") == 2


def refuse_to_open(path, monkeypatch):
    """As a file of another user, also where the tests run as root."""
    opening = Path.open

    def refuse(self, *args, **options):
        if self.name == path.name:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return opening(self, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)


def test_prune_removes_nothing_of_other_programs(folder, tmp_path):
    """Behind links, in folders of our names, and under names that begin like ours."""
    model = tmp_path / "model"
    model.mkdir()
    for name in ("0001.safetensors", "model.safetensors", "lock", ".0123456789abcdef.tmp"):
        (model / name).write_bytes(b"not ours")
    (folder / "edit-0123456789ab.unfinished").symlink_to(model)
    (folder / ".cogedit-0123456789abcdef").symlink_to(model)
    (folder / ".cogedit-0123456789abcdef.mp4").symlink_to(model / "lock")
    kept = [folder / "edits-0123456789ab.unfinished", folder / ".cogedit-fedcba9876543210"]
    kept += [folder / "mine.unfinished", folder / ".cogedit-backup"]
    for other in kept:
        shutil.copytree(model, other)
    (folder / ".cogedit-notes.txt").write_bytes(b"not ours")
    (folder / ".editor.tmp").write_bytes(b"not ours")
    linked = Path("linked.cogedit")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / ".0123456789abcdef.tmp").write_bytes(b"half")
    linked.symlink_to(tmp_path / "elsewhere")

    would = cache("prune", "--unfinished", "--damaged", "--dry-run")
    done = cache("prune", "--unfinished", "--damaged")
    assert done.stdout == would.stdout
    assert len(done.stdout.splitlines()) == 6  # five leftovers and the run that did not finish
    assert "linked.cogedit is a link" in done.stderr
    for there in (model, *kept):
        assert sorted(path.name for path in there.iterdir()) == [
            ".0123456789abcdef.tmp",
            "0001.safetensors",
            "lock",
            "model.safetensors",
        ], there
    assert (folder / ".cogedit-notes.txt").exists()
    assert (folder / ".editor.tmp").exists()
    assert len(list(linked.iterdir())) == 1
    assert len(cache("prune", linked).stdout.splitlines()) == 1
