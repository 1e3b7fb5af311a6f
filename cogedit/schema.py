"""How a setting is described: once, where its field is declared.

    width: Positive = setting(720, "Clip", "Width of the clip.", unit="pixels")

The annotation says which values are allowed, with msgspec's `Meta` for ranges; `setting` adds the
rest. From the two come the checks, the reading of TOML files, environment variables and batch
files, the flags with their help and completion, and the options page of the guide.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from cogedit.clip_times import RATE_WORDS, rate_text, time_text

T = TypeVar("T")

_MOST = 10**9
"""More than any count of frames, pixels or rows, and a number that every library can hold."""

Positive = Annotated[int, Meta(ge=1, le=_MOST)]
Count = Annotated[int, Meta(ge=0, le=_MOST)]
Radius = Annotated[int, Meta(ge=0, le=1000)]
Share = Annotated[float, Meta(ge=0, le=1)]
Guidance = Annotated[float, Meta(ge=0, le=1000)]
NumSteps = Annotated[int, Meta(ge=1, le=1000)]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1, description="a whole number, 0 to 2^63 - 1")]
_Weight = Annotated[float, Meta(ge=0, le=100)]
# Of two weights, but of any length to msgspec: 0.22 crashes where a tuple of fixed length stands
# beside a number with a range.
Strength = Annotated[
    _Weight | Annotated[tuple[_Weight, ...], Meta(min_length=2, max_length=2)],
    Meta(description="a number, 0 to 100, or FIRST:LAST such as 2:0"),
]
Layers = Annotated[
    tuple[Count, Count | None],
    Meta(description="FIRST:END with 0 <= FIRST < END; END is the end of the layers"),
]
FrameRate = Annotated[
    Fraction, Meta(description="a number such as 24, 23.976 or 30000/1001, at most 1000")
]
# In text: records keep what was said beside the frames that it stands for.
Time = Annotated[
    str,
    Meta(
        pattern=r"\A(\d{1,18}(\.\d{1,9})?|\d{1,9}f)\Z",
        description="a time such as 12.5, 1:02.5 or 00:01:02.500, or a frame such as 300f",
        extra={"read": time_text},
    ),
]
ClipRate = Annotated[
    str,
    Meta(
        pattern=r"\A(model|source|spread|sparse|[1-9]\d{0,17}(/[1-9]\d{0,17})?)\Z",
        description="model, source, spread, sparse, or a number such as 8, 23.976 or 30000/1001, "
        "at most 1000",
        examples=list(RATE_WORDS),
        extra={"read": rate_text},
    ),
]
Color = Annotated[
    str,
    Meta(
        pattern=r"\A(black|white|gray|red|green|blue|#[0-9a-fA-F]{6})\Z",
        description="black, white, gray, red, green, blue, or #rrggbb in hexadecimal digits",
        examples=["black", "white", "gray", "red", "green", "blue"],
    ),
]
Device = Annotated[
    str,
    Meta(
        pattern=r"\A(auto|cuda(:\d+)?|mps|cpu)\Z",
        description="auto, cuda, cuda:N, mps or cpu",
        examples=["auto", "cuda", "mps", "cpu"],
    ),
]
Name = Annotated[str, Meta(min_length=1, description="a name or a folder")]

Group = Literal[
    "Edit",
    "Attention to the source",
    "Inversion",
    "Mask",
    "Clip",
    "Video",
    "Files",
    "Model",
    "Speed and memory",
]
"""Groups of settings in help texts and on the options page, those most often set first."""

_FRAME_RATE = re.compile(r"\d{1,9}(\.\d{1,9}|/0*[1-9]\d{0,8})?")


def setting(
    default: T,
    group: Group,
    text: str,
    *,
    unit: str = "",
    metavar: str = "",
    default_text: str = "",
    none_text: str = "auto",
    is_later: bool = False,
    earlier: object = None,
) -> T:
    """Declare a field as a setting: what it does, in sentences without its default.

    `metavar` stands for the value in help texts, and follows from the type where it is left out;
    `default_text` is the default in words, needed where it is None; `none_text` is the word that
    stands for None; `is_later` is as in `later`, with `earlier` for the value of earlier records
    where that is another than the default.
    """
    described = {"group": group, "text": text, "unit": unit, "metavar": metavar}
    described |= {"default_text": default_text, "none_text": none_text}
    metadata: dict[str, object] = {"setting": described}
    if is_later:
        metadata["earlier"] = default if earlier is None else earlier
    field: T = dataclasses.field(default=default, metadata=metadata)
    return field


def later(default: T) -> T:
    """Declare a field that records had no place for before: it is not written at its default.

    So an earlier record is a whole record still, with the same text and the same content key.
    """
    field: T = dataclasses.field(default=default, metadata={"earlier": default})
    return field


@dataclass(frozen=True)
class Setting:
    """A setting as its field describes it."""

    key: str  # dotted, the same in TOML files, variables and error messages
    hint: object  # type of its value, with the range; None aside
    optional: bool  # whether None is a value
    default: object
    group: str
    text: str
    unit: str
    metavar: str
    default_text: str
    none_text: str  # the word for None

    @property
    def type(self) -> object:
        """The type without its range, such as `int`."""
        return get_args(self.hint)[0] if get_origin(self.hint) is Annotated else self.hint

    @property
    def is_list(self) -> bool:
        """Whether it takes any number of values; its `read` (in `Meta.extra`) reads each."""
        return get_origin(self.type) is tuple and get_args(self.type)[-1] is Ellipsis

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it takes; empty where it takes other values too."""
        if get_origin(self.type) is Literal:
            return cast(tuple[str, ...], get_args(self.type))
        return tuple(self._range.examples or ())

    @property
    def expected(self) -> str:
        """Which values are allowed, in words."""
        auto = f", or {self.none_text}" if self.has_auto else ""
        if get_origin(self.type) is Literal:
            return "one of " + ", ".join(self.choices) + auto
        if self._range.description is not None:
            return self._range.description + auto
        if self.type is bool:
            return "true or false"
        if self.type is Path and self.metavar == "FILE":
            return "a file"
        kinds = {int: "a whole number", float: "a number", Path: "a folder"}
        kind = kinds.get(cast(type, self.type), "text") + (f" of {self.unit}" if self.unit else "")
        low, high = self._range.ge, self._range.le
        bounds = "" if low is None else f", {low} to {'10^9' if high == _MOST else high}"
        return kind + bounds + auto

    @property
    def has_auto(self) -> bool:
        """Whether a word stands for None; for text it is text like any other."""
        return self.optional and self.type not in (str, Path)

    @property
    def _range(self) -> Meta:
        return get_args(self.hint)[1] if get_origin(self.hint) is Annotated else Meta()

    def read(self, value: object, *, is_text: bool) -> object:
        """Read a value as a user writes it, in TOML, a variable, a flag or Python.

        With `is_text`, text stands for numbers, as in a variable; in TOML "6" is no number. Text
        stands for a list too: its values with semicolons between them, or "none" of them.

        Raises:
            ValueError: It is of another type or out of range; `expected` says what is allowed.
        """
        value = _of_python(value)
        if self.is_list:
            return self._read_list(value)
        if self.optional and (value is None or (value == self.none_text and self.has_auto)):
            return None
        if (read := (self._range.extra or {}).get("read")) is not None:
            try:
                value = read(value)
            except ValueError as error:
                raise ValueError(self.expected) from error
        is_window = get_origin(self.type) is tuple
        is_union = get_origin(self.type) in (Union, UnionType)  # of a number and a pair
        if is_window or (is_union and isinstance(value, str) and ":" in value):
            is_text = is_text or isinstance(value, str)
            items = value.split(":") if isinstance(value, str) else value
            if isinstance(items, list | tuple):
                words = [item.upper() if isinstance(item, str) else item for item in items]
                value = [None if item == "END" else item for item in words]
        try:
            found = msgspec.convert(value, self.hint, strict=not is_text, dec_hook=_read_custom)
        except msgspec.ValidationError as error:
            raise ValueError(self.expected) from error
        if not _is_sound(found) or (is_window and not _is_ordered(found)):
            raise ValueError(self.expected)
        if is_union and isinstance(found, tuple) and found[0] == found[1]:
            return cast(object, found[0])
        return cast(object, found)

    def _read_list(self, value: object) -> object:
        items = [*map(str.strip, value.split(";"))] if isinstance(value, str) else value
        read = cast("Callable[[object], object]", (self._range.extra or {})["read"])
        try:
            if not isinstance(items, list | tuple):
                raise ValueError("no list")  # noqa: TRY004
            if "none" in items and len(items) > 1:
                raise ValueError("none of them, and some")
            return () if [*items] == ["none"] else tuple(map(read, items))
        except ValueError as error:
            raise ValueError(self.expected) from error


@functools.cache
def settings_of(record_type: type[object]) -> tuple[Setting, ...]:
    """The settings of a record and of the records that it holds, in order of declaration."""
    return tuple(_settings_of(record_type))


def _settings_of(record_type: type[object], table: str = "") -> Iterator[Setting]:
    hints = get_type_hints(record_type, include_extras=True)
    for field in dataclasses.fields(record_type):  # type: ignore[arg-type]
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _settings_of(cast("type[object]", hint), field.name)
        elif described := field.metadata.get("setting"):
            optional = get_origin(hint) in (Union, UnionType)
            if optional:
                hint = next(arg for arg in get_args(hint) if arg is not NoneType)
            key = f"{table}.{field.name}" if table else field.name
            words = cast("dict[str, str]", described)
            default_text = words["default_text"] or show_value(field.default)
            made = Setting(
                key, hint, optional, field.default, **words | {"default_text": default_text}
            )
            yield made


_FLAGS = {
    "reconstruct.start": "--start-from",  # `--start` is where a clip begins
    "transformer_file": "--transformer",  # `transformer` is a table
    "vae_file": "--vae",
}


def flag_name(key: str) -> str:
    """The flag of a dotted key, where no other setting of the command has its name."""
    return _FLAGS.get(key) or "--" + key.rpartition(".")[2].replace("_", "-")


def plain_value(value: object) -> object:
    """A setting's value as JSON and TOML have it; None is "auto" or "not set"."""
    if isinstance(value, tuple):
        if not any(item is None or isinstance(item, int | float) for item in value):
            return [str(item) for item in value]  # of a list; what follows is a window
        return ":".join("END" if item is None else str(item) for item in value)
    if isinstance(value, Fraction | Path):
        return str(value)
    return value


def show_value(value: object) -> str:
    """A value in a sentence."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    plain = plain_value(value)
    if isinstance(plain, list):
        return "; ".join(plain) or "none"
    return f"{value:g}" if isinstance(value, float) else str(plain)


def path_of(text: str | Path) -> Path:
    """Return a path that a user wrote; `~` is the home folder, as in a shell.

    Raises:
        ValueError: No file can have this name, or it begins with `~` and the name of no user. An
            empty one, which pathlib takes for the current folder, is a mistake, too.
    """
    if text == "":
        raise ValueError("it is empty (. is the current folder)")
    if b"\0" in os.fsencode(text):  # a lone surrogate is a ValueError there
        raise ValueError("a file name holds no NUL")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"there is no home folder {Path(text).parts[0]}") from error


def _of_python(value: object) -> object:
    """Return what NumPy's or PyTorch's numbers and arrays are as Python's own."""
    if isinstance(value, list | tuple):
        return type(value)(map(_of_python, value))
    if isinstance(value, str):
        return str(value)
    plain = getattr(value, "tolist", None)
    return value if plain is None else plain()


def _read_custom(kind: type[object], value: object) -> object:
    """Read what msgspec does not know."""
    if kind is Path and isinstance(value, str | Path):
        return path_of(value)
    # A float means its decimal digits. The pattern bounds them: Fraction("1e999999999") would take
    # the machine down. No bool matches it.
    if kind is Fraction and _FRAME_RATE.fullmatch(str(value)):
        return Fraction(str(value))
    raise ValueError(f"Expected another type than {type(value).__name__}")


def _is_sound(value: object) -> bool:
    """Check what a range cannot say: numbers are finite, frame rates positive."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Fraction):
        return 0 < value <= 1000
    return True


def _is_ordered(window: tuple[float, float | None]) -> bool:
    """Whether a window begins before it ends; one of fractions may be empty."""
    first, last = window
    return last is None or (first < last if isinstance(first, int) else first <= last)
