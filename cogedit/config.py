"""Settings and where each one comes from: flag > COGEDIT_* > cogedit.toml > preset > default.

Every setting has a dotted key, the same everywhere: `reconstruct.guidance_scale` is the key
`guidance_scale` of the table `[reconstruct]` in TOML and the variable
`COGEDIT_RECONSTRUCT_GUIDANCE_SCALE`. The keys, their types and their defaults are the fields of the
settings records; their ranges are in `_RANGES`, which flags, files and Python callers all pass.
"""

from __future__ import annotations

import difflib
import math
import re
import reprlib
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from pathlib import Path
from types import NoneType, UnionType
from typing import Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from cogedit.errors import ConfigError, UsageError
from cogedit.types import (
    DType,
    EncodeSettings,
    ExportSettings,
    InvertSettings,
    LoadSettings,
    ReconstructSettings,
)

CONFIG_FILE = "cogedit.toml"
CONFIG_VARIABLE = "COGEDIT_CONFIG"
_PREFIX = "COGEDIT_"

SettingsT = TypeVar(
    "SettingsT", LoadSettings, EncodeSettings, InvertSettings, ReconstructSettings, ExportSettings
)
RecordT = TypeVar("RecordT")


@dataclass(frozen=True)
class Settings:
    """Everything that a command can be told, apart from its files and its prompt.

    Attributes:
        model: Hub id or folder; "auto" is the model of the artifact that the command reads.
        revision: Branch, tag or commit of a hub model; None is its main branch.
        dtype: Floating-point type of the model; None is the checkpoint's own.
        device: "auto", "cuda", "cuda:N", "mps" or "cpu".
        workspace: Folder of the artifacts; None is `<video stem>.cogedit`.
        load: How frames are chosen.
        encode: How the VAE encodes.
        invert: How latents are inverted.
        reconstruct: How a trajectory is denoised. Its prompt is empty: a prompt belongs to one
            command, `reconstruct_with` adds it.
        export: How a video is written.
    """

    model: str = "auto"
    revision: str | None = None
    dtype: DType | None = None
    device: str = "auto"
    workspace: Path | None = None
    load: LoadSettings = field(default_factory=LoadSettings)
    encode: EncodeSettings = field(default_factory=EncodeSettings)
    invert: InvertSettings = field(default_factory=InvertSettings)
    reconstruct: ReconstructSettings = field(default_factory=lambda: ReconstructSettings(prompt=""))
    export: ExportSettings = field(default_factory=ExportSettings)

    def reconstruct_with(self, prompt: str) -> ReconstructSettings:
        """The `reconstruct` table under this prompt."""
        return replace(self.reconstruct, prompt=prompt)


@dataclass(frozen=True)
class ResolvedSettings:
    """Settings and their origins.

    Attributes:
        settings: The values.
        origins: For every dotted key "flag", "environment variable COGEDIT_...", the name of a
            TOML file, "preset NAME" or "default".
        preset: Name of the preset that took part; None if none did.
    """

    settings: Settings
    origins: Mapping[str, str]
    preset: str | None


@dataclass(frozen=True)
class _Layer:
    """Values by dotted key from one source: "flag", "environment", a file's name, "preset NAME"."""

    source: str
    values: Mapping[str, object]

    def origin(self, key: str) -> str:
        """Where a value came from, for people."""
        if self.source == "environment":
            return f"environment variable {_variable_name(key)}"
        return self.source

    def refuse(self, key: str, found: object, expected: str) -> UsageError:
        """The error for a value of this source."""
        if self.source == "flag":
            return UsageError(f"{_flag_name(key)} is {_plain(found)}, expected {expected}")
        if self.source == "environment":
            return ConfigError(f"{self.origin(key)} is {_plain(found)}, expected {expected}")
        return ConfigError(
            f"`{key}` in {self.source} is {reprlib.repr(found)}, expected {expected}"
        )


def resolve_settings(
    flags: Mapping[str, object],
    *,
    config: str | None = None,
    environ: Mapping[str, str],
    cwd: Path,
    inferred: Mapping[str, Mapping[str, object]] | None = None,
) -> ResolvedSettings:
    """Settle every setting, and note where its value came from.

    Args:
        flags: Values by dotted key, typed or as text; None means that the flag was not given.
        config: Name of a preset, or a TOML file that takes the place of `cogedit.toml`. Without
            it `COGEDIT_CONFIG`, then the key `config` of `cogedit.toml` choose. The model's own
            preset lies below it.
        environ: The environment. An empty variable counts as not set.
        cwd: Folder where `cogedit.toml` is looked up.
        inferred: What follows from the artifact, the machine or the model: by origin, values by
            dotted key. It gives way to everything that was asked for, but not to the preset that
            only follows from the model.

    Raises:
        UsageError: A flag has a wrong type or is out of range.
        ConfigError: The same in a file or a variable, an unknown key, or a file that cannot be
            read as TOML.
    """
    given = {key: value for key, value in flags.items() if value is not None}
    layers = [_Layer("flag", given), _environment_layer(environ)]
    wanted = config or environ.get(CONFIG_VARIABLE) or None
    file = cwd / wanted if wanted is not None and _is_file_name(wanted) else None
    values_of_file, preset = _read_file(file or cwd / CONFIG_FILE, required=file is not None)
    layers.append(_Layer((file or Path(CONFIG_FILE)).name, values_of_file))
    if wanted is not None and file is None:
        preset = wanted
    if preset is not None:
        layers.append(_Layer(f"preset {preset}", _read_preset(preset)))
    layers += [_Layer(origin, values) for origin, values in (inferred or {}).items()]
    models = [layer.values["model"] for layer in layers if "model" in layer.values]
    of_model = preset_for_model(models[0]) if models and isinstance(models[0], str) else None
    if of_model is not None and of_model != preset:
        # Below a preset that was named: one of a method ("upstream") says nothing of sizes.
        layers.append(_Layer(f"preset {of_model}", _read_preset(of_model)))
        preset = preset or of_model
    values, origins = _merge(layers)
    return ResolvedSettings(_build(values), origins, preset)


def check_settings(settings: SettingsT) -> SettingsT:
    """Check the ranges of a settings record that was made in Python.

    Returns:
        The same record.

    Raises:
        UsageError: A value is out of its range.
    """
    table = next(name for name, made in _TABLES.items() if made is type(settings))
    for item in fields(settings):
        key = f"{table}.{item.name}"
        value = cast(object, getattr(settings, item.name))
        if value is not None and key in _RANGES and not _RANGES[key][0](value):
            raise UsageError(f"{item.name} is {reprlib.repr(value)}, expected {_RANGES[key][1]}")
    return settings


def presets_folder() -> Path:
    """Where the shipped presets are.

    A wheel carries the repository's `configs/` as `cogedit/configs/`; a source checkout and an
    editable install have it beside the package. The package's own folder comes first: beside an
    installed package, `configs` would be somebody else's.
    """
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def preset_names() -> list[str]:
    """Names of the shipped presets, sorted."""
    return sorted(path.stem for path in presets_folder().glob("*.toml"))


def preset_for_model(model: str) -> str | None:
    """The preset of a checkpoint, or None for one that has no preset.

    Args:
        model: Hub id of any owner ("zai-org/CogVideoX-5b", "THUDM/CogVideoX-5b") or a folder of
            that name.
    """
    name = re.split(r"[/\\]", model.rstrip("/\\"))[-1].lower()
    presets = {
        "cogvideox-2b": "cogvideox-2b",
        "cogvideox-5b": "cogvideox-5b",
        "cogvideox1.5-5b": "cogvideox-1.5-5b",
    }
    return presets.get(name)


# --- keys, types and ranges -------------------------------------------------------------------

_TABLES: dict[str, type[object]] = {
    "load": LoadSettings,
    "encode": EncodeSettings,
    "invert": InvertSettings,
    "reconstruct": ReconstructSettings,
    "export": ExportSettings,
}


def _keys() -> dict[str, object]:
    """Every dotted key with its type."""
    hints = {name: hint for name, hint in get_type_hints(Settings).items() if name not in _TABLES}
    for table, record in _TABLES.items():
        hints |= {f"{table}.{name}": hint for name, hint in get_type_hints(record).items()}
    del hints["reconstruct.prompt"]
    return hints


def _within(low: float, high: float = math.inf) -> Callable[[object], bool]:
    return lambda value: low <= cast(float, value) <= high and math.isfinite(cast(float, value))


def _is_window(value: object) -> bool:
    first, last = cast(tuple[float, float], value)
    return 0 <= first <= last <= 1


def _is_layer_range(value: object) -> bool:
    first, end = cast(tuple[int, int | None], value)
    return first >= 0 and (end is None or end > first)


_POSITIVE = (_within(1), "1 or more")
_COUNT = (_within(0), "0 or more")
_GUIDANCE = (_within(0), "a finite number, 0 or more")
_RANGES: dict[str, tuple[Callable[[object], bool], str]] = {
    "model": (bool, "a hub id or a folder"),
    "device": (
        lambda value: re.fullmatch(r"auto|cuda(:\d+)?|mps|cpu", cast(str, value)) is not None,
        "auto, cuda, cuda:N, mps or cpu",
    ),
    "load.width": _POSITIVE,
    "load.height": _POSITIVE,
    "load.max_num_frames": _POSITIVE,
    "load.skip_frames_start": _COUNT,
    "load.skip_frames_end": _COUNT,
    "load.frame_sample_step": _POSITIVE,
    "invert.guidance_scale": _GUIDANCE,
    "invert.num_inference_steps": (_within(1, 1000), "1 to 1000"),
    "invert.inversion_iterations": (_within(1, 100), "1 to 100"),
    "reconstruct.guidance_scale": _GUIDANCE,
    "reconstruct.seed": (_within(0, 2**63 - 1), "0 to 2^63 - 1"),
    "reconstruct.injection_strength": (_within(0, 1), "0 to 1"),
    "reconstruct.injection_steps": (_is_window, "FIRST:LAST with 0 <= FIRST <= LAST <= 1"),
    "reconstruct.injection_layers": (_is_layer_range, "FIRST:END with 0 <= FIRST < END"),
    "export.fps": (
        lambda value: 0 < cast(Fraction, value) <= 1000,
        "more than 0 and at most 1000",
    ),
    "export.crf": (_within(0, 51), "0 to 51"),
}


# --- sources ----------------------------------------------------------------------------------


def _flag_name(key: str) -> str:
    return "--" + key.rpartition(".")[2].replace("_", "-")


def _variable_name(key: str) -> str:
    return _PREFIX + key.replace(".", "_").upper()


def _environment_layer(environ: Mapping[str, str]) -> _Layer:
    known = {_variable_name(key): key for key in _keys()}
    values: dict[str, object] = {}
    for name, text in environ.items():
        if not name.startswith(_PREFIX) or not text or name == CONFIG_VARIABLE:
            continue
        if name not in known:
            raise ConfigError(f"unknown environment variable {name}", hint=_nearest(name, [*known]))
        values[known[name]] = text
    return _Layer("environment", values)


def _is_file_name(config: str) -> bool:
    return config.endswith(".toml") or "/" in config or "\\" in config


def _read_file(path: Path, *, required: bool) -> tuple[dict[str, object], str | None]:
    """The values of a user's TOML file, and the preset that its key `config` names."""
    if not required and not path.exists():
        return {}, None
    values = _read_toml(path, path.name)
    config = values.pop("config", None)
    if config is not None and (not isinstance(config, str) or _is_file_name(config)):
        raise _Layer(path.name, {}).refuse("config", config, "the name of a preset")
    return values, config


def _read_preset(preset: str) -> dict[str, object]:
    names = preset_names()
    if preset not in names:
        raise ConfigError(
            f"unknown preset {reprlib.repr(preset)}, expected one of {', '.join(names)} "
            "or a file that ends in .toml",
            hint=_nearest(preset, names),
        )
    return _read_toml(presets_folder() / f"{preset}.toml", f"preset {preset}")


def _read_toml(path: Path, name: str) -> dict[str, object]:
    """The values of a TOML file by dotted key; tables are flattened, keys are checked."""
    try:
        parsed: dict[str, object] = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name} is not valid TOML: {error}") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{name} is not valid TOML: {type(error).__name__}") from error
    except OSError as error:
        raise ConfigError(f"cannot read {name}: {error.strerror}") from error
    known = [*_keys(), "config"]
    values = dict(_flatten(parsed))
    for key in values:
        if key in _TABLES:
            raise _Layer(name, {}).refuse(key, values[key], "a table")
        if key not in known:
            hint = _nearest(key, [*known, *_TABLES])
            raise ConfigError(f"unknown key `{key}` in {name}", hint=hint)
    return values


def _flatten(parsed: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for key, value in parsed.items():
        if key in _TABLES and isinstance(value, dict):
            yield from ((f"{key}.{inner}", item) for inner, item in value.items())
        else:
            yield key, value


def _nearest(key: str, known: list[str]) -> str:
    """What was probably meant; the whole list where nothing is near."""
    if key == "reconstruct.prompt":
        return "a prompt belongs to the command: `cogedit reconstruct --prompt PROMPT`"
    same_name = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    near = same_name or difflib.get_close_matches(key, known, n=1)
    if not near:
        return "expected one of " + ", ".join(known)
    return "did you mean " + " or ".join(f"`{name}`" for name in near) + "?"


# --- values -----------------------------------------------------------------------------------


def _merge(layers: list[_Layer]) -> tuple[dict[str, object], dict[str, str]]:
    """The first layer that has a key wins; values that lose are checked all the same."""
    hints = _keys()
    values: dict[str, object] = {}
    origins = dict.fromkeys(hints, "default")
    for layer in reversed(layers):
        for key, raw in layer.values.items():
            if key not in hints:
                raise UsageError(f"unknown setting {key}", hint=_nearest(key, [*hints]))
            try:
                # Only flags and variables are text: in TOML "6" is not a number.
                value = _convert(raw, hints[key], layer.source in ("flag", "environment"))
            except ValueError as error:
                raise layer.refuse(key, raw, str(error)) from error
            if value is not None and key in _RANGES and not _RANGES[key][0](value):
                raise layer.refuse(key, raw, _RANGES[key][1])
            values[key] = value
            origins[key] = layer.origin(key)
    return values, origins


def _build(values: Mapping[str, object]) -> Settings:
    parts: dict[str, dict[str, object]] = {name: {} for name in ("", *_TABLES)}
    for key, value in values.items():
        table, _, name = key.rpartition(".")
        parts[table][name] = value
    default = Settings()
    tables = {name: _replace(getattr(default, name), parts[name]) for name in _TABLES}
    return _replace(default, parts[""] | tables)


def _replace(record: RecordT, changes: Mapping[str, object]) -> RecordT:
    # The values were converted by the fields' own type hints, which mypy cannot follow.
    return cast(Callable[..., RecordT], replace)(record, **changes)


def _plain(found: object) -> str:
    """Text as it was typed, unless it would break the line."""
    return found if isinstance(found, str) and found.isprintable() else reprlib.repr(found)


def _convert(value: object, hint: object, is_text: bool) -> object:
    """A value of the type `hint`; ValueError says what was expected."""
    if _is_optional(hint):
        inner = next(arg for arg in get_args(hint) if arg is not NoneType)
        if value == "auto" and inner not in (str, Path):
            return None
        return _convert(value, inner, is_text)
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
