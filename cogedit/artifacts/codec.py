"""Frozen records to canonical JSON and back, strictly, by the records' own type hints.

Canonical means: one text per record. Keys are sorted, separators compact, characters ASCII; a
float field is always written as a float (6 and 6.0 are one setting and must be one content key),
a `Fraction` as "30000/1001", a tuple as a list. A field that came later (`schema.later`) is left
out at its default. Reading refuses every field that is missing,
unknown, of another type or out of range, because a record that is half understood is a wrong
recipe. msgspec checks types and ranges; it knows each class after the first record.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import reprlib
from collections.abc import Collection, Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import TypeVar, cast, get_type_hints

import msgspec

from cogedit.errors import ArtifactError

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
RecordT = TypeVar("RecordT")

_RETIRED = {
    "drift_correction": "drift correction was removed after cogedit 0.1.0, which reads this file",
}
"""Fields of earlier versions, with the reason why only their neutral value is read."""

_FRACTION = re.compile(r"[1-9][0-9]{0,17}(/[1-9][0-9]{0,17})?")
_write = json.JSONEncoder(sort_keys=True, allow_nan=False, separators=(",", ":")).encode
_SCALARS = frozenset({type(None), bool, int, float, str})


class JsonText(str):
    """Canonical JSON of an object, for configurations whose fields are not ours (a scheduler's).

    It is text so that the record stays frozen; in a file it is written as the object itself.
    """

    __slots__ = ()


def canonical_json(value: Mapping[str, object]) -> JsonText:
    """The one JSON text of a mapping.

    Args:
        value: Strings, numbers, booleans, None, lists, tuples and mappings with string keys. Leave
            out the private keys of a diffusers config first: `_use_default_values` comes from a
            set, so that its order changes from run to run.

    Raises:
        ArtifactError: A value has no JSON form, NaN and infinity among them.
    """
    return JsonText(canonical_text(value))


def canonical_text(value: object) -> str:
    """The one JSON text of an encoded record. Raises `ArtifactError` as `canonical_json` does."""
    try:
        return _write(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"a value cannot be recorded as JSON: {error}") from error


def parse_json(text: str) -> Json:
    """Parse JSON, refusing what Python's parser lets through: duplicate keys, NaN and infinity.

    Raises:
        ArtifactError: The text is not strict JSON.
    """
    try:
        return cast(
            Json, json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
        )
    except (ValueError, RecursionError) as error:
        # RecursionError: a hostile file may hold a million opening brackets.
        raise ArtifactError(f"invalid JSON: {error}") from error


def encode_record(record: object) -> Json:
    """The JSON object of a frozen record, checked against its type hints.

    A record class may carry constants (`json_constants`): what identifies it, and the fields of
    earlier versions with the one value that still means the same. They are written beside the
    fields, so that content keys stay what they were, and reading requires them to be the same.

    Raises:
        ArtifactError: A field holds another type than it declares, or is out of range.
    """
    return _plain(_convert(_plain(record), type(record)))  # the second writes 6 as 6.0


def decode_record(
    value: Json,
    record_type: type[RecordT],
    text: str | None = None,
    *,
    known: Mapping[str, object] | None = None,
) -> RecordT:
    """The record of a JSON object, the inverse of `encode_record`.

    Args:
        value: The object.
        record_type: The class of the record.
        text: The object's `canonical_text`, where it is known already.
        known: Values of fields that were decoded before, and are null in the object.

    Raises:
        ArtifactError: A field is missing, unknown, of another type or out of range.
    """
    record = _convert(value, record_type, known or {})
    # msgspec passes over unknown fields and fills missing ones in; neither survives the way back.
    written = _plain(record, left_out=known or {})
    if canonical_text(written) != (text or canonical_text(value)):
        raise ArtifactError(_difference(value, written, record_type.__name__))
    return record


def _convert(
    value: Json, record_type: type[RecordT], known: Mapping[str, object] = MappingProxyType({})
) -> RecordT:
    completed: object = _completed(value, record_type)
    if known and isinstance(completed, dict):
        completed = {**completed, **known}
    try:
        return msgspec.convert(completed, record_type, dec_hook=_read_custom)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$")
        where = record_type.__name__ + path.removesuffix("`")
        raise ArtifactError(f"{where} is wrong: {problem[0].lower()}{problem[1:]}") from error


def _read_custom(kind: type[object], value: object) -> object:
    """Read what msgspec does not know."""
    if kind is JsonText and isinstance(value, dict):
        return canonical_json(value)
    # The pattern bounds the digits: Fraction("1e999999999") would take the machine down.
    if kind is Fraction and isinstance(value, str) and _FRACTION.fullmatch(value):
        return Fraction(value)
    expected = "an object" if kind is JsonText else 'a fraction above 0 such as "30000/1001"'
    raise ValueError(f"Expected {expected}, got {reprlib.repr(value)}")


def _plain(value: object, *, left_out: Collection[str] = ()) -> Json:
    """A record's values as JSON has them, its constants beside its fields; null for those out."""
    kind = type(value)
    if kind is tuple:
        # Most are numbers, of which a clip has many.
        items = cast("tuple[object, ...]", value)
        return [cast(Json, item) if type(item) in _SCALARS else _plain(item) for item in items]
    if kind is JsonText:
        return parse_json(cast(JsonText, value))
    if kind is Fraction:
        return str(value)
    if dataclasses.is_dataclass(kind):
        names, constants, later = _fields(kind)
        plain = dict(constants)
        for name in names:
            item = None if name in left_out else getattr(value, name)
            if name not in later or item != later[name]:
                plain[name] = item if type(item) in _SCALARS else _plain(item)
        return plain
    raise ArtifactError(f"{reprlib.repr(value)} cannot be recorded")


@functools.cache
def _fields(
    record_type: type[object],
) -> tuple[tuple[str, ...], Mapping[str, Json], Mapping[str, object]]:
    """Return a record's fields, its constants, and the defaults that are not written."""
    fields = dataclasses.fields(record_type)  # type: ignore[arg-type]
    constants = cast(Mapping[str, Json], getattr(record_type, "json_constants", {}))
    later = {one.name: one.metadata["earlier"] for one in fields if "earlier" in one.metadata}
    return tuple(field.name for field in fields), constants, later


def _completed(value: Json, record_type: type[object]) -> Json:
    """Write what an earlier record leaves out, where that is not what is done unasked today."""
    if not isinstance(value, dict):
        return value
    missing, inner = _missing(record_type)  # type: ignore[arg-type]
    found = {name: _completed(value[name], kind) for name, kind in inner.items() if name in value}
    return {**missing, **value, **found}


@functools.cache
def _missing(record_type: type[object]) -> tuple[Mapping[str, Json], Mapping[str, type[object]]]:
    """Return the values that earlier records stand for and no default says, and inner records."""
    fields, hints = dataclasses.fields(record_type), get_type_hints(record_type)  # type: ignore[arg-type]
    missing = {
        one.name: cast(Json, one.metadata["earlier"])
        for one in fields
        if one.metadata.get("earlier", one.default) != one.default
    }
    inner = {n: h for n, h in hints.items() if isinstance(h, type) and dataclasses.is_dataclass(h)}
    return missing, inner


def _difference(found: Json, written: Json, where: str) -> str:
    """Say where a value first differs from its record as it would be written."""
    if isinstance(found, dict) and isinstance(written, dict):
        for name in sorted(found.keys() | written.keys()):
            if name not in found:
                return f"{where} has no field {name!r}"
            if name not in written:
                return f"{where} has an unknown field {reprlib.repr(name)}"
            if canonical_text(found[name]) != canonical_text(written[name]):
                reason = _RETIRED.get(name)
                text = _difference(found[name], written[name], f"{where}.{name}")
                return text if reason is None else f"{text}: {reason}"
    if isinstance(found, list) and isinstance(written, list):
        for index, (item, other) in enumerate(zip(found, written, strict=True)):
            if canonical_text(item) != canonical_text(other):
                return _difference(item, other, f"{where}[{index}]")
    return f"{where} is {reprlib.repr(found)}, expected {reprlib.repr(written)}"


def _unique_keys(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice")
    return result


def _no_constant(name: str) -> Json:
    raise ValueError(f"{name} is not a JSON number")
