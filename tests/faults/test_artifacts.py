"""Damaged, foreign and hostile artifacts: none accepted, each refused in one sentence."""

from __future__ import annotations

import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from chains import forged, header_size, packed
from hypothesis import given
from hypothesis import strategies as st
from soak import SOAK

from cogedit.artifacts import read_artifact, read_record, sniff_kind, verify_artifact
from cogedit.artifacts.codec import canonical_text, parse_json
from cogedit.artifacts.layout import MAGIC, MAX_HEADER_BYTES, decode_header
from cogedit.artifacts.records import RECORD_TYPES, record_from_json, record_text
from cogedit.errors import ArtifactError, CogeditError

pytestmark = pytest.mark.faults

KINDS = ("frames", "latents", "trajectory", "edit")


def problem(error: BaseException, path: Path) -> str | None:
    """What is wrong with a refusal; None if it is one sentence about this file, and exit code 4."""
    if not isinstance(error, ArtifactError):
        return f"{type(error).__name__}: {error}"
    if error.exit_code != 4:
        return f"exit code {error.exit_code}"
    if not error.message.isprintable() or len(error.message) > 400 + len(str(path)):
        return f"not one short sentence: {error.message[:500]!r}"
    if str(path) not in error.message:
        return f"does not name the file: {error.message!r}"
    return None if error.hint else "no hint"


def refusal(path: Path, *, header_is_bad: bool = False) -> str | None:
    """What is wrong with how a bad file is refused, by every way in; None if nothing is."""
    readers: list[Callable[[Path], object]] = [verify_artifact, read_artifact]
    if header_is_bad:
        readers += [read_record, sniff_kind]
    for read in readers:
        try:
            read(path)
        except Exception as error:  # noqa: BLE001  (what it is, is what is tested)
            found = problem(error, path)
            if found is not None:
                return f"{read.__name__}: {found}"
        else:
            return f"{read.__name__}: accepted"
    return None


def flipped(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << (bit % 8)
    return bytes(damaged)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bad.safetensors"


@pytest.mark.parametrize("kind", KINDS)
def test_header_bits(chain: Any, kind: str, path: Path, score: Any) -> None:
    good = chain.paths[kind].read_bytes()
    with score("artifact: header bit flipped") as cases:
        for bit in range(0, 8 * header_size(good), 1 if SOAK else 101):
            path.write_bytes(flipped(good, bit))
            found = refusal(path, header_is_bad=True)
            cases.case(found is None, f"{kind} byte {bit // 8} bit {bit % 8}: {found}")


@pytest.mark.parametrize("kind", KINDS)
def test_payload_bits(chain: Any, kind: str, path: Path, score: Any) -> None:
    good = chain.paths[kind].read_bytes()
    bits = range(8 * header_size(good), 8 * len(good))
    with score("artifact: payload bit flipped") as cases:
        for bit in random.Random(0).sample(bits, min(len(bits), 20_000) if SOAK else 100):
            path.write_bytes(flipped(good, bit))
            found = refusal(path)
            cases.case(found is None, f"{kind} bit {bit}: {found}")


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_and_extended(chain: Any, kind: str, path: Path, score: Any) -> None:
    good = chain.paths[kind].read_bytes()
    lengths = [0, 1, 7, 8, 9, header_size(good) - 1, header_size(good), len(good) - 1]
    lengths += random.Random(0).sample(range(len(good)), 200 if SOAK else 25)
    with score("artifact: truncated") as cases:
        for length in lengths:
            path.write_bytes(good[:length])
            found = refusal(path, header_is_bad=True)
            cases.case(found is None, f"{kind} {length} bytes: {found}")
    tails = [b"\0", b" ", b"\n", os.urandom(4096), good, good[header_size(good) :]]
    with score("artifact: bytes appended or inserted") as cases:
        for tail in tails:
            for content in (good + tail, tail + good, good[:8] + tail + good[8:]):
                path.write_bytes(content)
                found = refusal(path, header_is_bad=True)
                cases.case(found is None, f"{kind} {len(tail)} bytes: {found}")


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_of_two_files_mixed(chain: Any, kind: str, path: Path, score: Any) -> None:
    good = chain.paths[kind].read_bytes()
    with score("artifact: parts of two files") as cases:
        for other in KINDS:
            if other == kind:
                continue
            part = chain.paths[other].read_bytes()
            start, end = good[: header_size(good)], part[header_size(part) :]
            path.write_bytes(start + end)
            found = refusal(path)
            cases.case(found is None, f"header of {kind}, payload of {other}: {found}")
            path.write_bytes(start + (end * (len(good) // len(end) + 1))[: len(good) - len(start)])
            found = refusal(path)
            cases.case(found is None, f"header of {kind}, payload like {other}: {found}")


def deep(opening: bytes, count: int) -> bytes:
    return MAGIC + b'"}}' + opening * count


FOREIGN: dict[str, bytes] = {
    "empty": b"",
    "zeros": b"\0" * 5000,
    "text": b"hello\n" * 100,
    "all ones": b"\xff" * 5000,
    "pickle": pickle.dumps({"latents": [1.0] * 100}),
    "pickle that runs a command": b"cos\nsystem\n(S'touch /tmp/owned'\ntR.",
    "zip": b"PK\x03\x04" + b"\0" * 500,
    "mp4": b"\0\0\0\x18ftypisom" * 50,
    "safetensors without record": safetensors.torch.save({"latents": torch.zeros(1, 3, 4, 2, 2)}),
    "safetensors with other metadata": safetensors.torch.save(
        {"a": torch.zeros(3)}, metadata={"format": "pt"}
    ),
    "safetensors of our key": safetensors.torch.save(
        {"frames": torch.zeros(9, 8, 16, 3, dtype=torch.uint8)}, metadata={"cogedit": "{}"}
    ),
    "header of 2^63": (2**63).to_bytes(8, "little") + MAGIC + b"\0" * 100,
    "header of 2^64 - 1": (2**64 - 1).to_bytes(8, "little") + MAGIC + b"\0" * 100,
    "header of 0": (0).to_bytes(8, "little") + MAGIC + b"\0" * 100,
    "a million brackets": packed(MAGIC + b"[" * 10**6),
    "a million objects": packed(MAGIC + b'"}},"a":' + b'{"a":' * 10**6),
    "escaped brackets": packed(MAGIC + b'{\\"record\\":' + b"[" * 10**6 + b'"}}'),
    "a number of a million digits": packed(MAGIC + b'"}},"a":' + b"9" * 10**6 + b"}"),
    "an exponent": packed(MAGIC + b'"}},"a":1e999999999}'),
    "a lone surrogate": packed(MAGIC + b'{\\"record\\":\\"\\\\ud800\\"}"}}'),
    "not ASCII": packed(MAGIC + "é".encode() * 100),
    "half a megabyte of spaces": packed(MAGIC + b" " * 500_000),
    "many keys": packed(MAGIC + b'{}"},' + b",".join(b'"%d":0' % i for i in range(10**5)) + b"}"),
    "no object": packed(b'{"__metadata__":{"cogedit":"[]"}}'),
    "null record": packed(b'{"__metadata__":{"cogedit":"{\\"record\\":null,\\"sha256\\":null}"}}'),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files(name: str, path: Path, score: Any) -> None:
    path.write_bytes(FOREIGN[name])
    with score("artifact: foreign file") as cases:
        found = refusal(path, header_is_bad=True)
        cases.case(found is None, f"{name}: {found}")
    assert not Path("/tmp/owned").exists()


def test_huge_headers(path: Path, score: Any) -> None:
    sizes = {"at the bound": MAX_HEADER_BYTES, "above": MAX_HEADER_BYTES + 8, "200 MB": 200 * 2**20}
    with score("artifact: huge header") as cases:
        for name, size in sizes.items():
            for fill in (b"\0", b"[", b'{"a":', b"0,"):
                body = MAGIC + fill * (min(size, MAX_HEADER_BYTES) // len(fill))
                with path.open("wb") as file:
                    file.write(size.to_bytes(8, "little") + body[:size])
                    file.truncate(8 + size)  # the rest is a hole, which takes no disk
                found = refusal(path, header_is_bad=True)
                cases.case(found is None, f"{name} of {fill!r}: {found}")


# --- forgeries: the digests are right, what they cover is not ---------------------------------


def _set(place: str, value: object) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(record: dict[str, Any], header: dict[str, Any]) -> None:
        *parents, last = place.split(".")
        target: Any = header if parents[:1] == ["header"] else record
        for name in parents:
            if name != "header":
                target = target[int(name)] if isinstance(target, list) else target[name]
        if isinstance(target, list):
            target[int(last)] = value
        else:
            target[last] = value

    return change


FORGERIES: list[tuple[str, str, object]] = [
    ("frames", "kind", "latents"),
    ("frames", "kind", "trajectory"),
    ("frames", "kind", "__class__"),
    ("frames", "kind", None),
    ("frames", "schema", 2),
    ("frames", "schema", 10**300),
    ("frames", "schema", -1),
    ("frames", "schema", True),
    ("frames", "tensors.0.name", "../../x"),
    ("frames", "tensors.0.name", "frames\0"),
    ("frames", "tensors.0.name", "\x1b[31mframes"),
    ("frames", "tensors.0.shape", [0, 2**60]),
    ("frames", "tensors.0.shape", [2**31, 2**31, 2**31, 3]),
    ("frames", "tensors.0.shape", [-9, -8, 16, 3]),
    ("frames", "tensors.0.shape", [9, 8, 16, 3, 1]),
    ("frames", "tensors.0.shape", []),
    ("frames", "tensors.0.dtype", "float64"),
    ("frames", "tensors.0.sha256", "zz"),
    ("frames", "tensors", []),
    ("frames", "tensors", None),
    ("frames", "source.name", "clip\0.mp4"),
    ("frames", "source.name", "../../clip.mp4"),
    ("frames", "source.name", "/etc/passwd"),
    ("frames", "source.name", "\ud800.mp4"),
    ("frames", "source.name", ""),
    ("frames", "source.name", ".."),
    ("frames", "source.sha256", "not hex"),
    ("frames", "source.rotation", 45),
    ("frames", "source.num_frames", 0),
    ("frames", "source.num_frames", 3),
    ("frames", "frame_indices", [8, 7, 6, 5, 4, 3, 2, 1, 0]),
    ("frames", "frame_indices", [0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ("frames", "frame_indices", [0, 1, 2, 3, 4, 5, 6, 7, 10**12]),
    ("frames", "fps", "0"),
    ("frames", "fps", "1000000000000000000"),
    ("frames", "settings.max_num_frames", -1),
    ("frames", "box.left", -1),
    ("frames", "header.evil", {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}),
    ("frames", "header.frames.shape", [0, 2**60]),
    ("frames", "header.frames.data_offsets", [0, 2**60]),
    ("latents", "tensors.0.shape", [1, 3, 4, 4, 1, 1]),
    ("latents", "tensors.0.shape", [1, 3, 4, 0, 2]),
    ("latents", "model.id", "evil\0model"),
    ("latents", "model.digest", ""),
    ("latents", "model.dtype", "int8"),
    ("latents", "frames.kind", "latents"),
    ("latents", "frames.tensors", []),
    ("trajectory", "num_pad_frames", -1),
    ("trajectory", "num_pad_frames", 3),
    ("trajectory", "num_pad_frames", 10**9),
    ("trajectory", "settings.num_inference_steps", 0),
    ("trajectory", "settings.num_inference_steps", 6),
    ("trajectory", "settings.num_inference_steps", 10**12),
    ("trajectory", "settings.guidance_scale", "6"),
    ("trajectory", "scheduler", []),
    ("trajectory", "scheduler", "{}"),
    ("trajectory", "latents.tensors", []),
    ("edit", "has_trajectory", False),
    ("edit", "mask", None),
    ("edit", "mask.kind", "pickle"),
    ("edit", "settings.guidance_steps", [0.0]),
    ("edit", "settings.injection_layers", [0, 1, 2]),
    ("edit", "settings.prompt", None),
    ("edit", "trajectory.latents.frames.fps", "-1"),
    ("edit", "trajectory.tensors", []),
]


@pytest.mark.parametrize(("kind", "place", "value"), FORGERIES)
def test_forgeries(
    kind: str, place: str, value: object, chain: Any, path: Path, score: Any
) -> None:
    path.write_bytes(forged(chain.paths[kind].read_bytes(), _set(place, value)))
    with score("artifact: forged record") as cases:
        found = refusal(path, header_is_bad=True)
        cases.case(found is None, f"{kind} {place} = {value!r:.60}: {found}")


def test_forging_nothing_is_accepted(chain: Any, path: Path) -> None:
    """The forger itself does no damage: what the table above shows is the change alone."""
    for kind in KINDS:
        path.write_bytes(forged(chain.paths[kind].read_bytes(), lambda record, header: None))
        assert path.read_bytes() == chain.paths[kind].read_bytes()


def test_duplicate_keys(chain: Any, path: Path, score: Any) -> None:
    with score("artifact: duplicate key") as cases:
        for kind in KINDS:
            good = chain.paths[kind].read_bytes()
            size = header_size(good)
            body = good[8:size].rstrip()
            for name in (b"latents", b"frames", b"__metadata__", b"mask"):
                position = body.find(b'"%s":{' % name)
                if position < 0:
                    continue
                twice = body[:position] + b'"%s":{},' % name + body[position:]
                path.write_bytes(packed(twice, good[size:]))
                found = refusal(path, header_is_bad=True)
                cases.case(found is None, f"{kind} {name!r}: {found}")
            record = body.find(b'{\\"record\\":{') + len(b'{\\"record\\":{')
            twice = body[:record] + b'\\"kind\\":\\"edit\\",' + body[record:]
            path.write_bytes(packed(twice, good[size:]))
            found = refusal(path, header_is_bad=True)
            cases.case(found is None, f"{kind} in the record: {found}")


# --- hypothesis: whatever JSON a record is replaced by ----------------------------------------

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters())
    | st.sampled_from(["frames", "30000/1001", "1/0", "-1", "decord", "../x", "\0", "1e9"])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


@given(kind=st.sampled_from(list(RECORD_TYPES)), value=JSON)
def test_any_json_as_a_record(kind: Any, value: Any) -> None:
    with pytest.raises(ArtifactError):
        record_from_json(value, kind)


def _places(value: Any, where: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [where] if where else []
    if isinstance(value, dict):
        for name, item in value.items():
            found += _places(item, (*where, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found += _places(item, (*where, index))
    return found


@given(data=st.data())
def test_one_place_of_a_record_replaced(chain: Any, data: Any) -> None:
    """It is refused by an error of ours, or read as exactly what was written."""
    kind = data.draw(st.sampled_from(list(RECORD_TYPES)))
    record = json.loads(record_text(chain.records[kind]))
    *parents, last = data.draw(st.sampled_from(_places(record)))
    target = record
    for name in parents:
        target = target[name]
    target[last] = data.draw(JSON)
    try:
        found = record_from_json(record, kind)
    except ArtifactError:
        return
    read = json.loads(record_text(found))
    # A float field reads an int of the same value; everything else is the same to the letter.
    assert read == record


@given(text=st.text(max_size=200) | JSON.map(json.dumps))
def test_any_text_as_json(text: str) -> None:
    try:
        value = parse_json(text)
    except ArtifactError:
        return
    again = json.loads(canonical_text(value))
    assert again == value


@given(content=st.binary(max_size=300))
def test_any_bytes_as_a_header(content: bytes) -> None:
    for start in (content, packed(content), packed(MAGIC + content)):
        with pytest.raises(CogeditError):
            decode_header(start)
