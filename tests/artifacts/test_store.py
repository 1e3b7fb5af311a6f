"""Writing and reading artifacts: round trip, atomicity, and no byte left unchecked."""

from __future__ import annotations

import errno
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from chains import forged, header_size, packed

from cogedit.artifacts import (
    FramesRecord,
    Workspace,
    read_artifact,
    read_record,
    sniff_kind,
    verify_artifact,
    write_artifact,
)
from cogedit.errors import ArtifactDamaged, ArtifactError, ArtifactMismatch, StorageError
from cogedit.version import __version__

KINDS = ("frames", "latents", "trajectory", "edit")
Listing = Callable[[Path], dict[str, bytes]]


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(chain: Any, kind: str) -> None:
    path = chain.paths[kind]
    artifact = read_artifact(path)
    assert artifact.record == chain.records[kind] == read_record(path) == verify_artifact(path)
    assert set(artifact.tensors) == set(chain.tensors[kind])
    for name, tensor in artifact.tensors.items():
        assert torch.equal(tensor, chain.tensors[kind][name])
    assert sniff_kind(path) == kind


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_plain_safetensors(chain: Any, kind: str) -> None:
    loaded = safetensors.torch.load_file(chain.paths[kind])
    assert all(torch.equal(loaded[name], chain.tensors[kind][name]) for name in loaded)
    with safetensors.safe_open(chain.paths[kind], "pt") as file:
        assert list(file.metadata()) == ["cogedit"]


def test_equal_arguments_give_equal_bytes(chain: Any, tmp_path: Path) -> None:
    path = tmp_path / "again.safetensors"
    for kind in KINDS:
        reordered = dict(reversed(chain.tensors[kind].items()))
        write_artifact(path, reordered, chain.records[kind])
        assert path.read_bytes() == chain.paths[kind].read_bytes()


def test_strided_tensors_that_require_grad(chain: Any, tmp_path: Path) -> None:
    path = tmp_path / "latents.safetensors"
    z0 = chain.tensors["latents"]["latents"]
    strided = z0.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    write_artifact(path, {"latents": strided}, chain.records["latents"])
    assert path.read_bytes() == chain.paths["latents"].read_bytes()


def test_mode_follows_the_umask(chain: Any, tmp_path: Path) -> None:
    for umask, mode in ((0o022, 0o644), (0o027, 0o640), (0o000, 0o666)):
        before = os.umask(umask)
        try:
            path = tmp_path / f"{umask}.safetensors"
            write_artifact(path, chain.tensors["frames"], chain.records["frames"])
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({}, "'frames'"),
        ({"frame": torch.zeros(1, dtype=torch.uint8)}, "'frame'"),
        ({"frames": torch.zeros(9, 8, 16, 3)}, "float32 [9, 8, 16, 3]"),
        ({"frames": torch.zeros(9, 8, 16, dtype=torch.uint8)}, "uint8 [F, H, W, C]"),
        ({"frames": torch.zeros(9, 8, 17, 3, dtype=torch.uint8)}, "[9, 8, 17, 3]"),
        ({"frames": torch.zeros(9, 0, 16, 3, dtype=torch.uint8)}, "[9, 0, 16, 3]"),
        ({"frames": torch.zeros(9, 8, 16, 3, dtype=torch.bfloat16)}, "bfloat16"),
    ],
)
def test_write_refuses_other_tensors(
    tensors: dict[str, torch.Tensor], named: str, bare_record: FramesRecord, tmp_path: Path
) -> None:
    path = tmp_path / "frames.safetensors"
    with pytest.raises(ArtifactError) as caught:
        write_artifact(path, tensors, bare_record)
    assert str(path) in caught.value.message
    assert named in caught.value.message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mask": None}, "mask"),
        ({"source_latents": None}, "mask"),
        ({"mask": torch.zeros(9, 8, 17, dtype=torch.uint8)}, "[9, 8, 17]"),
        ({"mask": torch.zeros(9, 8, 16)}, "float32 [9, 8, 16]"),
        ({"source_latents": torch.zeros(1, 4, 4, 2, 2)}, "[1, 4, 4, 2, 2]"),
    ],
)
def test_write_refuses_another_mask(
    change: dict[str, torch.Tensor | None], named: str, chain: Any, tmp_path: Path
) -> None:
    tensors = {**chain.tensors["edit"], **change}
    with pytest.raises(ArtifactError) as caught:
        write_artifact(
            tmp_path / "edit.safetensors",
            {name: tensor for name, tensor in tensors.items() if tensor is not None},
            chain.records["edit"],
        )
    assert named in caught.value.message


def test_a_mask_belongs_to_a_record_that_has_one(chain: Any, tmp_path: Path) -> None:
    edit = chain.records["edit"]
    path, tensors = tmp_path / "edit.safetensors", dict(chain.tensors["edit"])
    found = replace(edit, mask=None, settings=replace(edit.settings, auto_mask=True))
    assert write_artifact(path, tensors, found).has_mask
    with pytest.raises(ArtifactError, match="latents, trajectory"):
        write_artifact(path, tensors, replace(edit, mask=None))
    del tensors["mask"], tensors["source_latents"]
    assert not write_artifact(path, tensors, replace(edit, mask=None)).has_mask


# --- failing in the middle --------------------------------------------------------------------


def _failing(error: BaseException) -> Callable[..., Any]:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("function", ["open", "fdopen", "fsync", "replace"])
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StorageError),
        (OSError(errno.EIO, "Input/output error"), StorageError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_failed_write_leaves_the_old_file_and_nothing_else(
    function: str,
    error: BaseException,
    raised: type[BaseException],
    chain: Any,
    tmp_path: Path,
    listing: Listing,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = chain.copy("frames", tmp_path / "old.safetensors")
    before = listing(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(os, function, _failing(error))
        with pytest.raises(raised):
            write_artifact(path, chain.tensors["latents"], chain.records["latents"])
    assert listing(tmp_path) == before
    write_artifact(path, chain.tensors["latents"], chain.records["latents"])
    assert verify_artifact(path).kind == "latents"


def test_file_size_limit_of_the_system(chain: Any, tmp_path: Path, listing: Listing) -> None:
    path = chain.copy("latents", tmp_path / "old.safetensors")
    before = listing(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(StorageError, match=path.name) as caught:
            write_artifact(path, chain.tensors["frames"], chain.records["frames"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.exit_code == 7
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "permission denied"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_storage_errors_say_which(
    number: int, sentence: str, chain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    monkeypatch.setattr(os, "open", _failing(OSError(number, os.strerror(number))))
    with pytest.raises(StorageError) as caught:
        write_artifact(path, chain.tensors["frames"], chain.records["frames"])
    assert caught.value.message == f"cannot write {path}: {sentence}"


def test_write_to_a_missing_folder_a_folder_and_a_device(chain: Any, tmp_path: Path) -> None:
    arguments = chain.tensors["frames"], chain.records["frames"]
    with pytest.raises(StorageError, match="missing") as caught:
        write_artifact(tmp_path / "missing" / "a.safetensors", *arguments)
    assert caught.value.exit_code == 7
    with pytest.raises(StorageError, match=tmp_path.name):
        write_artifact(tmp_path, *arguments)
    with pytest.raises(StorageError, match="it is not a regular file"):
        write_artifact(Path("/dev/null"), *arguments)
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert not list(tmp_path.iterdir())


# --- damage -----------------------------------------------------------------------------------


def _refusal(path: Path, kind: Any = None) -> ArtifactError:
    """The error of a file that every reader refuses in one sentence with exit code 4."""
    with pytest.raises(ArtifactError) as caught:
        verify_artifact(path, kind)
    with pytest.raises(ArtifactError):
        read_artifact(path, kind)
    assert caught.value.exit_code == 4
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


def test_no_byte_of_a_file_can_change(chain: Any, tmp_path: Path) -> None:
    path = chain.copy("frames", tmp_path / "a.safetensors")
    good = path.read_bytes()
    header = header_size(good)
    for position in [*range(header), *range(header, len(good), 17)]:
        damaged = bytearray(good)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError):
            verify_artifact(path)
        if position < header:
            with pytest.raises(ArtifactError):
                read_record(path)


def test_no_length_but_the_right_one(chain: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    good = chain.paths["trajectory"].read_bytes()
    for length in range(0, len(good), 23):
        path.write_bytes(good[:length])
        with pytest.raises(ArtifactError):
            read_record(path)


def test_damage_has_its_sentence(chain: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    good = chain.paths["latents"].read_bytes()
    header = header_size(good)

    def refused(content: bytes) -> ArtifactError:
        path.write_bytes(content)
        return _refusal(path, "latents")

    sizes = {
        good[:-1]: (len(good) - 1, len(good)),
        good + b"\0": (len(good) + 1, len(good)),
        good[:100]: (100,),
        (2**40).to_bytes(8, "little") + good[8:]: (2**40,),
    }
    for content, named in sizes.items():
        error = refused(content)
        assert isinstance(error, ArtifactDamaged)
        assert error.hint == (f"remove it, and the command that made it recomputes it: rm {path}")
        assert all(str(number) in error.message for number in named)
    flipped = good[:-1] + bytes([good[-1] ^ 1])
    assert "'latents'" in refused(flipped).message
    changed = good.replace(b"clip.mp4", b"clap.mp4")
    tiny = (3).to_bytes(8, "little") + good[8:]
    spaced = (header - 8 + 8).to_bytes(8, "little") + good[8:header] + b" " * 8 + good[header:]
    for content in (flipped, changed, tiny, spaced):
        assert isinstance(refused(content), ArtifactDamaged)


def test_foreign_files(chain: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(dict(chain.tensors["latents"]), path)
    error = _refusal(path, "latents")
    assert isinstance(error, ArtifactMismatch)
    assert "latents" in error.message
    torch.save(dict(chain.tensors["latents"]), path)
    assert isinstance(_refusal(path), ArtifactMismatch)
    for content in (b"", b"\0", b"\0\0\0\x18ftypisom" * 10):
        path.write_bytes(content)
        error = _refusal(path)
        assert isinstance(error, ArtifactMismatch)
        assert error.hint == "make it with `cogedit reconstruct VIDEO --prompt PROMPT`"


def test_a_video_in_place_of_an_artifact_is_named_in_the_command_that_makes_one(
    tmp_path: Path,
) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"\0\0\0\x18ftypisom" * 10)
    made = {None: "reconstruct {} --prompt PROMPT", "trajectory": "invert {}", "frames": "load {}"}
    for kind, command in made.items():
        assert _refusal(path, kind).hint == f"make it with `cogedit {command.format(path)}`"


def test_what_was_an_artifact_is_to_be_removed(chain: Any, tmp_path: Path) -> None:
    good = chain.paths["edit"].read_bytes()
    path = tmp_path / "edit-0123456789ab.safetensors"
    # The second says no kind any more, and the last two are told by their name alone.
    for content in (good[:-1], good[:100], b"", b"\0" * len(good)):
        path.write_bytes(content)
        for kind in (None, "edit"):
            hint = _refusal(path, kind).hint
            assert hint == f"remove it, and the command that made it recomputes it: rm {path}"
    # Of a workspace in place of an artifact the contents help.
    assert _refusal(tmp_path).hint == f"`cogedit cache ls {tmp_path}` lists the artifacts in it"


def test_missing_file_folder_and_pipe(tmp_path: Path) -> None:
    error = _refusal(tmp_path / "none.safetensors", "trajectory")
    assert not isinstance(error, ArtifactDamaged | ArtifactMismatch)
    assert error.hint == "make it with `cogedit invert VIDEO`"
    assert "cogedit cache ls" in (_refusal(tmp_path / "nope.safetensors").hint or "")
    gone = tmp_path / "edit-000000000000.safetensors"
    assert _refusal(gone).hint == "make it with `cogedit reconstruct VIDEO --prompt PROMPT`"
    for number in range(1, 5):
        (tmp_path / f"edit-{number}.safetensors").touch()
    hint = _refusal(gone).hint or ""
    assert all(f"edit-{number}.safetensors" in hint for number in (1, 2, 3))
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe"):
        assert isinstance(_refusal(place), ArtifactMismatch)


def test_wrong_kind(chain: Any) -> None:
    path = chain.paths["latents"]
    error = _refusal(path, "trajectory")
    assert isinstance(error, ArtifactMismatch)
    assert "latents" in error.message
    assert "trajectory" in error.message
    assert error.hint == f"make it with `cogedit invert {path}`"
    error = _refusal(chain.paths["edit"], ("latents", "frames"))
    assert all(kind in error.message for kind in ("edit", "latents", "frames"))
    assert error.hint == "make it with `cogedit encode VIDEO`"


def _forge(path: Path, change: Callable[[Any], None]) -> None:
    """Change a file's record, and give it the digest that makes it consistent again."""
    path.write_bytes(forged(path.read_bytes(), lambda record, header: change(record)))


def test_newer_schema(chain: Any, tmp_path: Path) -> None:
    path = chain.copy("frames", tmp_path / "a.safetensors")
    _forge(path, lambda record: record.update(schema=2, new_field=1))
    error = _refusal(path)
    assert isinstance(error, ArtifactMismatch)
    assert "schema 2" in error.message
    assert __version__ in error.message
    assert error.hint == "update cogedit"


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(kind="pickle"),
        lambda record: record.update(kind=["frames"]),
        lambda record: record.update(schema=0),
        lambda record: record.update(schema="1"),
        lambda record: record.pop("source"),
        lambda record: record.update(extra={}),
        lambda record: record.update(fps="0"),
        lambda record: record["source"].update(width=-1),
        lambda record: record["tensors"][0].update(name="../../x"),
        lambda record: record["tensors"][0].update(shape=[0, 2**60]),
        lambda record: record["tensors"][0].update(shape=[9, 8, -16, -3]),
        lambda record: record["tensors"][0].update(shape=[9, 16, 8, 3]),
        lambda record: record["tensors"][0].update(dtype="float32"),
        lambda record: record["tensors"][0].update(dtype="object"),
        lambda record: record["tensors"].append(record["tensors"][0]),
        lambda record: record["tensors"].clear(),
        lambda record: record["settings"].update(height=2**40),
        lambda record: record.update(frame_indices=[0]),
    ],
)
def test_consistent_forgeries(change: Callable[[Any], None], chain: Any, tmp_path: Path) -> None:
    path = chain.copy("frames", tmp_path / "a.safetensors")
    _forge(path, change)
    assert isinstance(_refusal(path), ArtifactDamaged)


@pytest.mark.parametrize("kind", ["latents", "trajectory", "edit"])
def test_what_is_wrong_in_a_parent_is_found_beside_files_that_share_it(
    chain: Any, tmp_path: Path, kind: str
) -> None:
    good = chain.copy(kind, tmp_path / "good.safetensors")
    assert read_record(good) == chain.records[kind]
    path = chain.copy(kind, tmp_path / "wrong.safetensors")

    def clip_in(record: Any) -> Any:
        parent = {"edit": "trajectory", "trajectory": "latents", "latents": "frames"}
        return clip_in(record[parent[record["kind"]]]) if record["kind"] in parent else record

    _forge(path, lambda record: clip_in(record)["settings"].update(width=0))
    error = _refusal(path)
    assert isinstance(error, ArtifactDamaged)
    assert "frames.settings.width" in error.message
    assert read_record(good) == chain.records[kind]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"shape":[9,8,16,3]', b'"shape":[9,16,8,3]'),
        (b'"data_offsets":[0,3456]', b'"data_offsets":[8,3464]'),
        (b'"dtype":"U8"', b'"dtype":"I8"'),
        (b',"frames":{"dtype"', b',"../../x":{"dtype"'),
        (b'{"__metadata__":', b'{"__metadata__":{"cogedit":"{}"},"__metadata__":'),
        (b',"frames":{', b',"frames":{"dtype":"U8"},"frames":{'),
    ],
)
def test_tensor_table_that_is_not_the_records(
    old: bytes, new: bytes, chain: Any, tmp_path: Path
) -> None:
    content = chain.paths["frames"].read_bytes()
    size = header_size(content)
    body = content[8:size].rstrip()
    assert body.count(old) == 1
    path = tmp_path / "a.safetensors"
    path.write_bytes(packed(body.replace(old, new), content[size:]))
    assert isinstance(_refusal(path), ArtifactDamaged)


def test_record_that_is_too_long_is_not_written(
    bare_record: FramesRecord, chain: Any, tmp_path: Path
) -> None:
    record = replace(bare_record, source=replace(bare_record.source, name="n" * 2**24))
    with pytest.raises(ArtifactError, match="expected at most"):
        write_artifact(tmp_path / "a.safetensors", chain.tensors["frames"], record)


def test_strange_names_stay_on_one_line(chain: Any, tmp_path: Path) -> None:
    path = tmp_path / "a\n[red]b\x1b[0m.safetensors"
    with pytest.raises(ArtifactError) as caught:
        read_record(path)
    assert caught.value.message.isprintable()
    record = chain.records["frames"]
    surrogate = os.fsdecode(b"caf\xe9.mp4")
    named = replace(record, source=replace(record.source, name=surrogate))
    write_artifact(path, chain.tensors["frames"], named)
    assert read_record(path, "frames").source.name == surrogate
    assert safetensors.torch.load_file(path)


def test_sniff(chain: Any, tmp_path: Path) -> None:
    video = tmp_path / "clip.mp4"
    assert sniff_kind(video) is None
    video.write_bytes(b"\0\0\0\x18ftypisom" * 10)
    assert sniff_kind(video) is None
    assert sniff_kind(tmp_path) is None
    # Our content under another name is ours; the ending .safetensors never means a video.
    assert sniff_kind(chain.copy("edit", tmp_path / "edit.bin")) == "edit"
    with pytest.raises(ArtifactError, match=r"gone\.safetensors"):
        sniff_kind(tmp_path / "gone.safetensors")
    (tmp_path / "foreign.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ArtifactMismatch):
        sniff_kind(tmp_path / "foreign.safetensors")
    (tmp_path / "cut.bin").write_bytes(chain.paths["edit"].read_bytes()[:200])
    with pytest.raises(ArtifactDamaged):
        sniff_kind(tmp_path / "cut.bin")


def test_records_and_verification_need_no_torch(chain: Any, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "clip.cogedit")
    workspace.create()
    chain.copy("edit", workspace.path_for(chain.records["edit"]))
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from cogedit.artifacts import *\n"
        "import cogedit.config\n"
        "path = Path(sys.argv[1])\n"
        "record = verify_artifact(path, 'edit')\n"
        "assert Workspace(path.parent).find(record) == path\n"
        "assert newest_artifact([path.parent], 'edit') == path\n"
        "assert sniff_kind(path) == 'edit'\n"
        "loaded = {'torch', 'numpy', 'safetensors', 'diffusers'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    path = workspace.path_for(chain.records["edit"])
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)
