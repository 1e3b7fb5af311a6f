"""Values as a user writes them to values of a setting's type."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin


def convert(value: object, hint: object, *, is_text: bool) -> object:
    """Make a value of the type of its setting.

    Args:
        value: From TOML, a variable or a flag.
        hint: Type of the setting.
        is_text: Whether text stands for numbers, as in a variable; in TOML "6" is not a number.

    Raises:
        ValueError: It is of another type; the message says what was expected.
    """
    if _is_optional(hint):
        inner = next(arg for arg in get_args(hint) if arg is not NoneType)
        if value == "auto" and inner not in (str, Path):
            return None
        return convert(value, inner, is_text=is_text)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError("one of " + ", ".join(get_args(hint)))
        return value
    if get_origin(hint) is tuple:
        return _pair(value, get_args(hint))
    if hint is Fraction:
        return _fraction(value)
    if hint is bool:
        words = {"true": True, "1": True, "false": False, "0": False}
        found = words.get(value.lower()) if is_text and isinstance(value, str) else value
        if not isinstance(found, bool):
            raise ValueError("true or false")
        return found
    if hint is int or hint is float:
        return _number(value, hint, is_text)
    if isinstance(value, str | Path):
        return Path(value) if hint is Path else str(value)
    raise ValueError("text")


def _is_optional(hint: object) -> bool:
    # `Literal[...] | None` is a typing.Union, `int | None` a types.UnionType.
    return get_origin(hint) in (Union, UnionType)


def _number(value: object, hint: object, is_text: bool) -> int | float:
    make = int if hint is int else float
    try:
        if is_text and isinstance(value, str):
            return make(value)
        if type(value) is int or type(value) is make:
            return make(value)
    except (ValueError, OverflowError):
        pass
    raise ValueError("a whole number" if hint is int else "a number")


def _pair(value: object, hints: tuple[object, ...]) -> tuple[object, ...]:
    """Two numbers, as "0.0:0.5" or [0.0, 0.5]; END is None where the second may be None."""
    is_text = isinstance(value, str)
    items = value.split(":") if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or len(items) != 2:
        raise ValueError("two numbers, FIRST:LAST")
    first, last = items
    if _is_optional(hints[1]):
        is_open = last is None or (isinstance(last, str) and last.upper() == "END")
        end = None if is_open else _number(last, int, is_text)
        return _number(first, int, is_text), end
    return _number(first, hints[0], is_text), _number(last, hints[1], is_text)


def _fraction(value: object) -> Fraction:
    """An exact frame rate; a float means its decimal digits."""
    if isinstance(value, Fraction):
        return value
    text = str(value) if isinstance(value, int | float | str) else ""
    # The pattern bounds the digits: Fraction("1e999999999") would take the machine down.
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9}|/0*[1-9]\d{0,8})?", text):
        raise ValueError("a frame rate such as 24, 23.976 or 30000/1001")
    return Fraction(text)
