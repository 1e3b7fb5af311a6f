"""Batch files: many edits in one file, as TOML, CSV or JSON lines."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from cogedit.config.resolve import check_values, is_file_name
from cogedit.config.settings import all_settings
from cogedit.config.text_file import BACKSLASHES, decode, parse_toml, read_file
from cogedit.errors import ConfigError, shown
from cogedit.places import Output, find_elsewhere, is_folder_name
from cogedit.schema import path_of
from cogedit.types import Loras

STDIN = "-"
"""Stands for the standard input in place of a file."""

_OWN = ("video", "prompt", "output", "mask", "first_frame", "config")
"""Keys of an edit that are no settings."""

_SUFFIXES = (".toml", ".csv", ".tsv", ".jsonl")
_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}
_ESCAPED = re.compile(r"[\b\t\n\f\r]")  # what a backslash before b, t, n, f or r makes
# Settings that are paths, or lists of files, relative to the file as `video` is.
_PATHS = ("workspace", "cache", "transformer_file", "vae_file")
_FILES = ("lora", "inversion_lora")
_BOX = re.compile(r"[-\d.,@: ]+")  # a mask that is no file


@dataclass(frozen=True)
class BatchRow:
    """What one row asks for: every prompt on every video."""

    where: str  # "row 3 of edits.csv"
    videos: tuple[Path, ...]
    prompts: tuple[str, ...]
    output: Output | None  # video or folder; None is the workspace
    mask: str | None  # a file or a box; None is everywhere
    first_frame: str | None  # a picture; None is the source's own
    config: str | None  # preset or TOML file; None is the run's
    values: Mapping[str, Mapping[str, object]]  # by origin and dotted key, the row's own first


def read_batch(file: str) -> tuple[BatchRow, ...]:
    """Read and check the rows of a batch file.

    A `.toml` has an `[[edit]]` table per row, and top-level keys and tables that hold for all of
    them; a `.csv` or `.tsv` has a header of the same keys, settings by dotted key, with commas,
    semicolons or tabs between its cells, and an empty cell is not given; a `.jsonl` has an object
    per line. Rows are counted from 1, the header left out. Paths are relative to the file. It is
    UTF-8, or UTF-16 with a byte order mark.

    Args:
        file: The file; "-" is the standard input, JSON lines where it begins with "{" and CSV
            otherwise, with paths relative to the current directory.

    Raises:
        ConfigError: It cannot be read, or a row lacks something, has an unknown key, or a value of
            a wrong type or out of range.
    """
    path = Path(file)
    name = "the standard input" if file == STDIN else path.name
    text = _text(file, name)
    form = path.suffix.lower()
    if file == STDIN:
        form = ".jsonl" if text.lstrip().startswith("{") else ".csv"
    base = Path() if file == STDIN else path.parent
    defaults: dict[str, object] = {}
    if form == ".toml":
        defaults, parsed = _parse_toml(text, name)
    else:
        parsed = _parse_lines(text, name) if form == ".jsonl" else _parse_csv(text, name)
    if not parsed:
        what = "[[edit]] table" if form == ".toml" else "row"
        raise ConfigError(f"{name} has no {what}", hint="give each a video and a prompt")
    is_text = form in (".csv", ".tsv")
    return tuple(
        _row(row, defaults, f"row {number} of {name}", name, base=base, is_text=is_text)
        for number, row in parsed
    )


def _text(file: str, name: str) -> str:
    if file != STDIN and Path(file).suffix.lower() not in _SUFFIXES:
        raise ConfigError(
            f"a batch is a file that ends in {', '.join(_SUFFIXES)}, or -; found {file}"
        )
    data = sys.stdin.buffer.read() if file == STDIN else read_file(Path(file), file)
    return decode(data, name)


Numbered = list[tuple[int, Mapping[str, object]]]


def _parse_toml(text: str, name: str) -> tuple[dict[str, object], Numbered]:
    """What holds for all edits, and the edits."""
    parsed = parse_toml(text, name)
    edits = parsed.pop("edit", [])
    if not isinstance(edits, list) or not all(isinstance(edit, dict) for edit in edits):
        raise ConfigError(f"`edit` in {name} is no list of tables", hint="begin each with [[edit]]")
    defaults = check_values(parsed, source=name, own=[*_OWN, "edit"], is_text=False)
    return defaults, [*enumerate(edits, 1)]


def _parse_csv(text: str, name: str) -> Numbered:
    separator = _separator(text, name)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: Numbered = []
    try:
        header = [cell.strip() for cell in next(reader, [])]
        twice = next((key for key in header if header.count(key) > 1), None)
        if twice is not None:
            raise ConfigError(f"the header of {name} has `{twice}` twice")
        for cells in reader:
            if not any(cells):
                continue
            number = len(rows) + 1
            if len(cells) != len(header):
                raise ConfigError(
                    f"row {number} of {name} has {len(cells)} cells, expected {len(header)}",
                    hint=f"put text with a {_SEPARATORS[separator]} into quotation marks",
                )
            given = zip(header, cells, strict=True)
            rows.append((number, {key: cell.strip() for key, cell in given if cell.strip()}))
    except csv.Error as error:
        raise ConfigError(f"line {reader.line_num} of {name} is not valid CSV: {error}") from error
    return rows


def _separator(text: str, name: str) -> str:
    """What separates the cells, as the header shows: no key holds any of the three."""
    header = text.partition("\n")[0]
    if "," in header and ";" in header:
        raise ConfigError(
            f"the header of {name} has commas and semicolons", hint="separate its cells by one"
        )
    return next((mark for mark in _SEPARATORS if mark in header), ",")


def _parse_lines(text: str, name: str) -> Numbered:
    rows: Numbered = []
    for line in filter(str.strip, text.split("\n")):
        number = len(rows) + 1
        try:
            parsed: object = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = type(error).__name__ if isinstance(error, RecursionError) else str(error)
            hint = BACKSLASHES if "\\" in line else None
            raise ConfigError(
                f"row {number} of {name} is not valid JSON: {reason}", hint=hint
            ) from error
        if not isinstance(parsed, dict):
            raise ConfigError(f"row {number} of {name} is no JSON object")
        rows.append((number, cast(Mapping[str, object], parsed)))
    return rows


def _row(
    parsed: Mapping[str, object],
    defaults: Mapping[str, object],
    where: str,
    name: str,
    *,
    base: Path,
    is_text: bool,
) -> BatchRow:
    """Check one row."""
    own = check_values(parsed, source=where, own=_OWN, is_text=is_text)
    both = {**defaults, **own}
    texts = {
        key: _texts(both[key], key, where, several=key in ("video", "prompt"))
        for key in _OWN
        if key in both
    }
    if "first_frame" in texts:
        texts.setdefault("prompt", ("",))
    for key in ("video", "prompt"):
        if key not in texts:
            raise ConfigError(f"{where} has no `{key}`", hint=f"give it a {key}")
    output, mask, first_frame, config = (texts.get(key, (None,))[0] for key in _OWN[2:])
    if mask is not None and not _BOX.fullmatch(mask):
        mask = str(_place(mask, base, f"`mask` in {where}"))
    if first_frame is not None:
        first_frame = str(_place(first_frame, base, f"`first_frame` in {where}"))
    if config is not None and is_file_name(config):
        config = str(_place(config, base, f"`config` in {where}"))
    return BatchRow(
        where=where,
        videos=tuple(_place(video, base, f"`video` in {where}") for video in texts["video"]),
        prompts=texts["prompt"],
        output=None if output is None else _output(output, base, f"`output` in {where}"),
        mask=mask,
        first_frame=first_frame,
        config=config,
        values={where: _settings(own, base), name: _settings(defaults, base)},
    )


def _output(text: str, base: Path, what: str) -> Output:
    """An output of a row; the slash at the end of a folder's name stays."""
    place = _place(text, base, what)
    return f"{place}{os.sep}" if is_folder_name(text) and place.suffix else place


def _place(text: str, base: Path, what: str) -> Path:
    """A path of a row; ConfigError for one that is a URL, a path of Windows, or no path any more.

    A file that exists is right under any name.
    """
    try:
        path = base / path_of(text)
    except ValueError as error:
        raise ConfigError(f"{what} is {shown(text)}: {error}") from error
    with suppress(OSError, ValueError):
        path.stat()
        return path
    if _ESCAPED.search(text):
        raise ConfigError(f"{what} is {text!r}, with control characters", hint=BACKSLASHES)
    elsewhere = find_elsewhere(text)
    if elsewhere is not None:
        raise ConfigError(f"{what}: {elsewhere.message}", hint=elsewhere.hint)
    return path


def _texts(value: object, key: str, where: str, *, several: bool) -> tuple[str, ...]:
    """Check a key that is text, or where `several` may be given a list of texts."""
    items = value if several and isinstance(value, list) else [value]
    if not items or not all(isinstance(item, str) and item.strip() for item in items):
        what = "text, or a list of texts" if several else "text"
        raise ConfigError(f"`{key}` in {where} is {shown(value)}, expected {what}")
    return tuple(cast(Sequence[str], items))


def _settings(values: Mapping[str, object], base: Path) -> dict[str, object]:
    """The settings among the keys, with paths relative to the current directory."""
    found = {key: value for key, value in values.items() if key not in _OWN}
    for key, value in found.items():
        if key in _PATHS:
            found[key] = base / path_of(cast(str, value))
        elif key in _FILES:
            files = cast(Loras, all_settings()[key].read(value, is_text=True))
            found[key] = tuple(replace(file, path=base / file.path) for file in files)
    return found
