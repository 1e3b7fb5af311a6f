"""Frozen records to canonical JSON and back, strictly, by the records' own type hints.

Canonical means: one text per record. Keys are sorted, separators compact, characters ASCII; a
float field is always written as a float (6 and 6.0 are one setting and must be one content key),
a `Fraction` as "30000/1001", a tuple as a list. Reading refuses every field that is missing,
unknown or of another type, because a record that is half understood is a wrong recipe.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import reprlib
from collections.abc import Callable, Mapping
from fractions import Fraction
from types import NoneType, UnionType
from typing import Literal, NewType, Union, cast, get_args, get_origin, get_type_hints

from cogedit.errors import ArtifactError

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

JsonText = NewType("JsonText", str)
"""Canonical JSON of an object, for configurations whose fields are not ours (a scheduler's). It is
text so that the record stays frozen; in a file it is written as the object itself."""

_FRACTION = re.compile(r"-?[0-9]{1,18}(/[0-9]{1,18})?")


def canonical_json(value: Mapping[str, object]) -> JsonText:
    """The one JSON text of a mapping.

    Args:
        value: Strings, numbers, booleans, None, lists, tuples and mappings with string keys. Leave
            out the private keys of a diffusers config first: `_use_default_values` comes from a
            set, so that its order changes from run to run.

    Raises:
        ArtifactError: A value has no JSON form, NaN and infinity among them.
    """
    try:
        return _dump(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"a configuration cannot be recorded as JSON: {error}") from error


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

    A record class may carry class constants that identify it (`json_constants`); they are written
    beside the fields, and reading requires them to be the same.

    Raises:
        ArtifactError: A field holds another type than it declares, or NaN.
    """
    return _encode(record, type(record), type(record).__name__)


def decode_record(value: Json, record_type: type[object]) -> object:
    """The record of a JSON object: the inverse of `encode_record`.

    Raises:
        ArtifactError: A field is missing, unknown or of another type.
    """
    return _decode(value, record_type, record_type.__name__)


def canonical_text(value: Json) -> str:
    """The one JSON text of an encoded record."""
    return _dump(value)


def _dump(value: object) -> JsonText:
    text = json.dumps(
        value, sort_keys=True, allow_nan=False, separators=(",", ":"), ensure_ascii=True
    )
    return JsonText(text)


def _unique_keys(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice")
    return result


def _no_constant(name: str) -> Json:
    raise ValueError(f"{name} is not a JSON number")


def _wrong(where: str, value: object, expected: str) -> ArtifactError:
    return ArtifactError(f"{where} is {reprlib.repr(value)}, expected {expected}")


def _fields(record_type: type[object]) -> tuple[tuple[str, object], ...]:
    """Field names and resolved type hints, in order of declaration."""
    hints = get_type_hints(record_type)
    return tuple((field.name, hints[field.name]) for field in dataclasses.fields(record_type))  # type: ignore[arg-type]


def _constants(record_type: type[object]) -> dict[str, Json]:
    return cast(dict[str, Json], getattr(record_type, "json_constants", {}))


def _optional(hint: object) -> object | None:
    """The X of `X | None`, or None for another hint."""
    if get_origin(hint) in (Union, UnionType):
        rest = [arg for arg in get_args(hint) if arg is not NoneType]
        if len(rest) == 1 and len(get_args(hint)) == 2:
            return cast(object, rest[0])
    return None


def _item_hints(hint: object, length: int) -> list[object] | None:
    """One hint per item of a tuple of `length` items, or None where the length does not fit."""
    args = list(get_args(hint))
    if len(args) == 2 and args[1] is Ellipsis:
        return [args[0]] * length
    return args if len(args) == length else None


def _encode(value: object, hint: object, where: str) -> Json:
    inner = _optional(hint)
    if inner is not None:
        return None if value is None else _encode(value, inner, where)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if type(value) is not hint:
            raise _wrong(where, value, f"a {hint.__name__}")
        items = {n: _encode(getattr(value, n), h, f"{where}.{n}") for n, h in _fields(hint)}
        return {**_constants(hint), **items}
    if get_origin(hint) is tuple:
        hints = _item_hints(hint, len(value)) if isinstance(value, tuple) else None
        if hints is None:
            raise _wrong(where, value, f"{hint}")
        items_in = cast(tuple[object, ...], value)
        return [_encode(v, h, where) for v, h in zip(items_in, hints, strict=True)]
    if hint is Fraction:
        if type(value) is not Fraction:
            raise _wrong(where, value, "a Fraction")
        return str(value)
    if hint is JsonText:
        return _encode_text(value, where)
    return _scalar(value, hint, where)


def _encode_text(value: object, where: str) -> Json:
    parsed = parse_json(value) if isinstance(value, str) else None
    if not isinstance(parsed, dict) or _dump(parsed) != value:
        raise _wrong(where, value, "the text of an object from canonical_json")
    return parsed


def _decode(value: Json, hint: object, where: str) -> object:
    inner = _optional(hint)
    if inner is not None:
        return None if value is None else _decode(value, inner, where)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _decode_fields(value, hint, where)
    if get_origin(hint) is tuple:
        hints = _item_hints(hint, len(value)) if isinstance(value, list) else None
        if hints is None:
            raise _wrong(where, value, f"a list for {hint}")
        items = cast(list[Json], value)
        return tuple(_decode(v, h, where) for v, h in zip(items, hints, strict=True))
    if hint is Fraction:
        return _decode_fraction(value, where)
    if hint is JsonText:
        return _dump(value) if isinstance(value, dict) else _scalar(value, dict, where)
    return _scalar(value, hint, where)


def _decode_fields(value: Json, record_type: type[object], where: str) -> object:
    if not isinstance(value, dict):
        raise _wrong(where, value, "an object")
    constants = _constants(record_type)
    fields = _fields(record_type)
    expected = {*constants, *(name for name, _ in fields)}
    if missing := sorted(expected - value.keys()):
        raise ArtifactError(f"{where} has no field {missing[0]!r}")
    if unknown := sorted(value.keys() - expected):
        raise ArtifactError(f"{where} has an unknown field {reprlib.repr(unknown[0])}")
    for name, constant in constants.items():
        if value[name] != constant or type(value[name]) is not type(constant):
            raise _wrong(f"{where}.{name}", value[name], repr(constant))
    build = cast(Callable[..., object], record_type)
    return build(**{name: _decode(value[name], hint, f"{where}.{name}") for name, hint in fields})


def _decode_fraction(value: Json, where: str) -> Fraction:
    # The pattern bounds the digits: Fraction("1e999999999") would take the machine down.
    if isinstance(value, str) and _FRACTION.fullmatch(value):
        numerator, _, denominator = value.partition("/")
        if int(denominator or "1") != 0:
            fraction = Fraction(int(numerator), int(denominator or "1"))
            if str(fraction) == value:
                return fraction
    raise _wrong(where, value, 'a fraction in lowest terms such as "30000/1001"')


def _scalar(value: object, hint: object, where: str) -> Json:
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        # By type too: True == 1 in Python.
        if not any(value == choice and type(value) is type(choice) for choice in choices):
            raise _wrong(where, value, "one of " + ", ".join(map(repr, choices)))
        return cast(Json, value)
    if hint is float and type(value) in (int, float):
        number = cast(float, value)
        # The bound comes first: float() of a huge integer raises.
        if not abs(number) < 2.0**1000 or math.isnan(number):
            raise _wrong(where, value, "a finite number")
        return float(number)
    if type(value) is not hint:
        raise _wrong(where, value, f"{getattr(hint, '__name__', hint)}")
    return cast(Json, value)
