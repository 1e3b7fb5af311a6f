"""Records: canonical JSON, content keys, and what the codec refuses."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from cogedit.artifacts import (
    EditRecord,
    FramesRecord,
    LoraRecord,
    canonical_json,
    content_key,
    record_text,
)
from cogedit.artifacts.codec import (
    JsonText,
    canonical_text,
    decode_record,
    encode_record,
    parse_json,
)
from cogedit.artifacts.records import TensorRecord, record_from_json
from cogedit.errors import ArtifactError
from cogedit.schema import later, setting
from cogedit.sources import PictureSource
from cogedit.types import ReconstructSettings, WindowPlan

GOLDEN_KEY = "bcdad8b129a644a350cad7fe8362ebb8a82e711e035b91fccebdd293c176ae6b"


def test_content_key_is_stable(bare_record: FramesRecord) -> None:
    # If this fails, every cache of every user misses: raise SCHEMA_VERSION and say so.
    assert content_key(bare_record) == GOLDEN_KEY


def test_record_text_is_canonical_and_reads_back(chain: Any) -> None:
    for kind, record in chain.records.items():
        text = record_text(record)
        assert text.isascii()
        parsed = json.loads(text)
        assert text == json.dumps(parsed, sort_keys=True, separators=(",", ":"))
        assert record_from_json(parsed, kind) == record
    assert parsed["trajectory"]["latents"]["frames"]["source"]["fps"] == "30000/1001"
    assert parsed["trajectory"]["scheduler"] == {"beta_start": 0.00085, "trained_betas": None}


def test_int_and_float_of_one_value_are_one_key(chain: Any) -> None:
    edit = chain.records["edit"]
    keys = {
        content_key(
            dataclasses.replace(
                edit, settings=dataclasses.replace(edit.settings, guidance_scale=scale)
            )
        )
        for scale in (6, 6.0)
    }
    assert len(keys) == 1


@dataclasses.dataclass(frozen=True)
class Before:
    """A record of an earlier version."""

    width: int


@dataclasses.dataclass(frozen=True)
class Now:
    """The same with two fields more."""

    width: int
    track: int | None = later(None)
    smooth: bool = setting(False, "Clip", "Smooth it.", is_later=True)


def test_a_later_field_leaves_earlier_records_as_they_are() -> None:
    earlier = canonical_text(encode_record(Before(3)))
    assert canonical_text(encode_record(Now(3))) == earlier
    assert decode_record(parse_json(earlier), Now) == Now(3)
    for record in (Now(3, track=0), Now(3, smooth=True)):
        encoded = encode_record(record)
        assert canonical_text(encoded) != earlier
        assert decode_record(encoded, Now) == record
    with pytest.raises(ArtifactError):  # one text per record: a default is never written
        decode_record({"width": 3, "track": None}, Now)


@dataclasses.dataclass(frozen=True)
class Since:
    """The same with a field that has another value unasked than in records that lack it."""

    width: int
    levels: int | None = setting(None, "Clip", "Of them.", is_later=True, earlier=0)


@dataclasses.dataclass(frozen=True)
class Holder:
    """A record in a record."""

    inner: Since


def test_what_earlier_records_lack_need_not_be_the_default() -> None:
    earlier = encode_record(Before(3))
    assert encode_record(Since(3, levels=0)) == earlier
    assert decode_record(earlier, Since) == Since(3, levels=0)
    assert decode_record({"inner": earlier}, Holder) == Holder(Since(3, levels=0))
    for levels in (None, 2):
        encoded = encode_record(Since(3, levels=levels))
        assert encoded != earlier
        assert decode_record(encoded, Since) == Since(3, levels=levels)
    with pytest.raises(ArtifactError):
        decode_record({"width": 3, "levels": 0}, Since)


def test_a_strength_is_written_as_a_number_or_as_two() -> None:
    def encoded(strength: float | tuple[float, ...]) -> Any:
        return encode_record(ReconstructSettings("a fox", injection_strength=strength))

    assert encoded(2)["injection_strength"] == 2.0  # as before there could be two
    assert canonical_text(encoded((2, 0))) == canonical_text(encoded((2.0, 0.0)))
    assert encoded((2.0, 0.0))["injection_strength"] == [2.0, 0.0]
    assert decode_record(encoded((2.0, 0.0)), ReconstructSettings).injection_strength == (2.0, 0.0)
    for wrong in (-1.0, [2.0], [2.0, -1.0], [2.0, 1.0, 0.0], [2, 0], "2:0", None):
        with pytest.raises(ArtifactError, match="injection_strength"):
            decode_record(encoded(1.0) | {"injection_strength": wrong}, ReconstructSettings)


def test_own_digests_are_not_in_the_key_and_parents_are(chain: Any) -> None:
    edit: EditRecord = chain.records["edit"]
    key = content_key(edit)
    assert content_key(dataclasses.replace(edit, tensors=())) == key
    trajectory = edit.trajectory
    first, *rest = trajectory.tensors
    other = dataclasses.replace(first, sha256="00" * 32)
    changed = dataclasses.replace(trajectory, tensors=(other, *rest))
    assert content_key(dataclasses.replace(edit, trajectory=changed)) != key


def _changed(value: object, hint: object) -> object:
    """Another value of the same type."""
    if get_origin(hint) not in (None, tuple, Literal):  # X | None
        hint = next(arg for arg in get_args(hint) if arg is not type(None))
        if value is None:
            return get_args(hint)[0] if get_origin(hint) is Literal else hint(1)  # type: ignore[operator]
    if get_origin(hint) is Literal:
        return next(choice for choice in get_args(hint) if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        first = value[0]
        if isinstance(first, TensorRecord):
            return (dataclasses.replace(first, sha256="ff" * 32), *value[1:])
        return (_changed(first, type(first)), *value[1:])
    if isinstance(value, float):
        return value / 2 + 0.01  # still a share where it was one
    if isinstance(value, int | Fraction):
        return type(value)(value + 1)
    if isinstance(value, JsonText):
        return canonical_json(json.loads(value) | {"zeta": 1})
    assert isinstance(value, str)
    return "0" * 64 if len(value) == 64 else value + "x"


ONE_OF_A_FEW = {"rotation": 90, "background": "white", "frame_rate": "24"}
ONE_OF_A_FEW |= {"windows": WindowPlan(13, 4, 4), "first_frame": PictureSource("a.png", "0" * 64)}
ONE_OF_A_FEW |= {"lora": (LoraRecord("a.safetensors", "0" * 64, 0.8),)}
"""Another value of fields that take few, or a record."""

AS_ASKED = {
    f"edit.trajectory.latents.frames.settings.{name}" for name in ("start", "end", "duration")
}
"""Fields that say in another way which frames there are."""


def _variants(record: Any, where: str) -> Iterator[tuple[str, Any]]:
    """The record with one leaf changed, for every leaf of the chain."""
    hints = get_type_hints(type(record))
    for field in dataclasses.fields(record):
        value, path = getattr(record, field.name), f"{where}.{field.name}"
        if dataclasses.is_dataclass(value):
            for inner_path, inner in _variants(value, path):
                yield inner_path, dataclasses.replace(record, **{field.name: inner})
        elif path != "edit.tensors":
            changed = ONE_OF_A_FEW.get(field.name) or _changed(value, hints[field.name])
            yield path, dataclasses.replace(record, **{field.name: changed})


def test_every_field_of_the_chain_changes_the_key(chain: Any) -> None:
    edit = chain.records["edit"]
    keys = {"edit": content_key(edit)}
    for path, variant in _variants(edit, "edit"):
        if path in AS_ASKED:
            assert content_key(variant) == keys["edit"], path
            assert record_text(variant) != record_text(edit), path
        else:
            keys[path] = content_key(variant)
    named = dataclasses.replace(edit, first_frame=PictureSource("b.png", "0" * 64))
    assert content_key(named) == keys["edit.first_frame"]
    assert len(keys) >= 60
    assert len(set(keys.values())) == len(keys)


@pytest.mark.parametrize("word", ["source", "spread"])
def test_a_rate_in_a_word_is_in_no_key(chain: Any, word: str) -> None:
    """Which frames it stands for is in the record; those of 0.1.0 say no word."""
    frames: FramesRecord = chain.records["frames"]
    settings = dataclasses.replace(frames.settings, frame_rate=word)
    asked = dataclasses.replace(frames, settings=settings)
    assert content_key(asked) == content_key(frames)
    latents = dataclasses.replace(chain.records["latents"], frames=asked)
    assert content_key(latents) == content_key(chain.records["latents"])


def test_extra_frames_are_not_shown(chain: Any) -> None:
    frames: FramesRecord = chain.records["frames"]
    assert (frames.num_frames, frames.shown_indices) == (9, frames.frame_indices)
    indices = (0, 2, 4, 6, 8, 10, 12, 14, 14)
    extra = dataclasses.replace(frames, frame_indices=indices, num_extra_frames=3)
    assert (extra.num_frames, extra.shown_indices) == (6, (0, 2, 4, 6, 8, 10))
    assert extra.span == (0, 12 / frames.source.fps)
    value = parse_json(record_text(extra))
    assert record_from_json(value, "frames") == extra
    assert content_key(extra) != content_key(dataclasses.replace(frames, frame_indices=indices))


@pytest.mark.parametrize(
    ("indices", "extra"),
    [([0, 2, 2], None), ([0, 2, 2, 4], 1), ([0, 2, 1], 1), ([0, 2, 4], 3), ([0], 1)],
)
def test_extra_frames_without_meaning_are_refused(
    chain: Any, indices: list[int], extra: int | None
) -> None:
    value = parse_json(record_text(chain.records["frames"]))
    assert isinstance(value, dict)
    value |= {"frame_indices": [*indices]}
    value |= {} if extra is None else {"num_extra_frames": extra}
    with pytest.raises(ArtifactError, match=r"frame_indices"):
        record_from_json(value, "frames")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"fps": None}, "FramesRecord.fps"),
        ({"fps": "30/0"}, "FramesRecord.fps"),
        ({"fps": "60/2"}, "FramesRecord.fps"),
        ({"fps": "-30"}, "FramesRecord.fps"),
        ({"fps": "1e999999999"}, "FramesRecord.fps"),
        ({"surprise": 1}, "FramesRecord has an unknown field 'surprise'"),
        ({"frame_indices": [0, True]}, "FramesRecord.frame_indices[1]"),
        ({"frame_indices": []}, "FramesRecord.frame_indices"),
        ({"frame_indices": [-1]}, "FramesRecord.frame_indices[0]"),
        ({"frame_indices": [4, 2]}, "frame_indices"),
        ({"frame_indices": [20]}, "the last frame index is 20"),
        ({"frame_indices": 7}, "FramesRecord.frame_indices"),
        ({"kind": "latents"}, "FramesRecord.kind is 'latents'"),
        ({"schema": 1.0}, "FramesRecord.schema is 1.0"),
        ({"box": []}, "FramesRecord.box"),
    ],
)
def test_reading_refuses(bare_record: FramesRecord, change: dict[str, Any], named: str) -> None:
    value = json.loads(record_text(bare_record)) | change
    with pytest.raises(ArtifactError) as caught:
        record_from_json(value, "frames")
    assert caught.value.message.startswith(named)


@pytest.mark.parametrize(
    ("part", "name", "value", "named"),
    [
        ("source", "sha256", None, "FramesRecord.source"),
        ("source", "sha256", "AB" * 32, "FramesRecord.source.sha256"),
        ("source", "rotation", 45, "FramesRecord.source.rotation"),
        ("source", "num_frames", 10**7, "FramesRecord.source.num_frames"),
        ("source", "name", "../clip.mp4", "source.name"),
        ("settings", "width", None, "FramesRecord.settings has no field 'width'"),
        ("settings", "width", 0, "FramesRecord.settings.width"),
        ("settings", "width", 16.0, "FramesRecord.settings.width"),
        ("settings", "zoom", 2, "FramesRecord.settings has an unknown field 'zoom'"),
        ("box", "mode", "squash", "FramesRecord.box.mode"),
        ("box", "left", -1, "FramesRecord.box.left"),
    ],
)
def test_reading_names_what_is_wrong_in_a_part(
    bare_record: FramesRecord, part: str, name: str, value: object, named: str
) -> None:
    """None takes the field out: no default of today may stand in for what was not recorded."""
    record = json.loads(record_text(bare_record))
    record[part][name] = value
    if value is None:
        del record[part][name]
    with pytest.raises(ArtifactError) as caught:
        record_from_json(record, "frames")
    assert caught.value.message.startswith(named)
    assert name in caught.value.message


def test_an_unknown_field_of_a_tensor_is_refused(chain: Any) -> None:
    record = json.loads(record_text(chain.records["edit"]))
    record["tensors"][1]["more"] = 0
    with pytest.raises(ArtifactError, match=r"EditRecord.tensors\[1\] has an unknown field"):
        record_from_json(record, "edit")


def test_a_whole_number_for_a_float_is_no_canonical_record(chain: Any) -> None:
    record = json.loads(record_text(chain.records["edit"]))
    record["settings"]["guidance_scale"] = 4
    with pytest.raises(ArtifactError, match=r"EditRecord.settings.guidance_scale is 4"):
        record_from_json(record, "edit")


def test_record_with_a_wrong_type_has_no_key(bare_record: FramesRecord) -> None:
    wrong = dataclasses.replace(bare_record, fps=29.97)  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match=r"FramesRecord.fps"):
        content_key(wrong)


def test_nan_is_refused_everywhere(chain: Any) -> None:
    with pytest.raises(ArtifactError, match="JSON"):
        canonical_json({"a": float("nan")})
    with pytest.raises(ArtifactError, match="NaN"):
        parse_json('{"a": NaN}')
    edit = chain.records["edit"]
    for bad in (float("nan"), float("inf"), 10**400):
        settings = dataclasses.replace(edit.settings, guidance_scale=bad)
        with pytest.raises(ArtifactError, match="guidance_scale"):
            content_key(dataclasses.replace(edit, settings=settings))


@pytest.mark.parametrize("text", ['{"a":1,"a":2}', "[" * 100_000, "{", "", '{"a":' + "9" * 5000])
def test_json_that_python_would_let_through_or_choke_on(text: str) -> None:
    with pytest.raises(ArtifactError, match="JSON"):
        parse_json(text)
