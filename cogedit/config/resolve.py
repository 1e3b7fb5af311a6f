"""Settings and where each one comes from: flag > COGEDIT_* > cogedit.toml > preset > default.

Every setting has a dotted key, the same everywhere: `reconstruct.guidance_scale` is the key
`guidance_scale` of the table `[reconstruct]` in TOML and the variable
`COGEDIT_RECONSTRUCT_GUIDANCE_SCALE`. The rows of a batch file come between flag and environment.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from cogedit.config.settings import REMOVED, TABLES, Settings, all_settings
from cogedit.config.text_file import decode, parse_toml, read_file
from cogedit.errors import ConfigError, UsageError, plain, shown
from cogedit.schema import flag_name, path_of

CONFIG_FILE = "cogedit.toml"
CONFIG_VARIABLE = "COGEDIT_CONFIG"
_PREFIX = "COGEDIT_"

RecordT = TypeVar("RecordT")


@dataclass(frozen=True)
class ResolvedSettings:
    """Settings, and where the value of each dotted key came from.

    An origin is "flag", "environment variable COGEDIT_...", the name of a TOML file, "preset NAME"
    or "default".
    """

    settings: Settings
    origins: Mapping[str, str]
    preset: str | None  # name of the preset that took part

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            raise AttributeError(f"ResolvedSettings has no {name!r}: pass its `.settings` on")


@dataclass(frozen=True)
class _Layer:
    """Values by dotted key from one source."""

    source: str  # "flag", "environment", the name of a file, "preset NAME"
    values: Mapping[str, object]
    is_text: bool = False  # whether text stands for numbers; in TOML "6" is no number
    # Of flags, where not `flag_name`; None for a caller in Python, who names settings.
    names: Mapping[str, str] | None = None

    def origin(self, key: str) -> str:
        """Where a value came from, for people."""
        if self.source == "environment":
            return f"environment variable {_variable_name(key)}"
        return self.source

    def refuse(self, key: str, found: object, expected: str) -> UsageError:
        """The error for a value of this source."""
        if self.source == "flag":
            flag = key if self.names is None else self.names.get(key) or flag_name(key)
            return UsageError(f"{flag} is {plain(found)}, expected {expected}")
        if self.source == "environment":
            return ConfigError(f"{self.origin(key)} is {plain(found)}, expected {expected}")
        return ConfigError(f"`{key}` in {self.source} is {shown(found)}, expected {expected}")


def resolve_settings(
    flags: Mapping[str, object],
    *,
    config: str | None = None,
    environ: Mapping[str, str],
    cwd: Path,
    rows: Mapping[str, Mapping[str, object]] | None = None,
    inferred: Mapping[str, Mapping[str, object]] | None = None,
    flag_names: Mapping[str, str] | None = None,
) -> ResolvedSettings:
    """Resolve every setting, and note where its value came from.

    Args:
        flags: Values by dotted key, typed or as text; None means that the flag was not given.
        config: Name of a preset, or a TOML file that takes the place of `cogedit.toml`. Without
            it `COGEDIT_CONFIG`, then the key `config` of `cogedit.toml` choose. The model's own
            preset lies below it.
        environ: The environment. An empty variable counts as not set.
        cwd: Folder where `cogedit.toml` is looked up.
        rows: What a batch file asks for one edit: by origin, values by dotted key, checked by
            `check_values`. They give way to flags alone, and to each other in their order.
        inferred: What follows from the artifact, the machine or the model: by origin, values by
            dotted key. It gives way to everything that was asked for, but not to the preset that
            only follows from the model.
        flag_names: By dotted key, what a flag was called, for the message that refuses it; None
            calls it by its key.

    Raises:
        UsageError: A flag has a wrong type or is out of range.
        ConfigError: The same in a file or a variable, an unknown key, or a file that cannot be
            read as TOML.
    """
    given = {key: value for key, value in flags.items() if value is not None}
    layers = [_Layer("flag", given, is_text=True, names=flag_names)]
    layers += [_Layer(origin, values, is_text=True) for origin, values in (rows or {}).items()]
    layers.append(_environment_layer(environ))
    wanted = config or environ.get(CONFIG_VARIABLE) or None
    file = cwd / _file_of(wanted) if wanted is not None and is_file_name(wanted) else None
    values_of_file, preset = _read_file(file or cwd / CONFIG_FILE, required=file is not None)
    layers.append(_Layer((file or Path(CONFIG_FILE)).name, values_of_file))
    if wanted is not None and file is None:
        preset = wanted
    if preset is not None:
        layers.append(_Layer(f"preset {preset}", read_preset(preset)))
    layers += [_Layer(origin, values) for origin, values in (inferred or {}).items()]
    models = [layer.values["model"] for layer in layers if "model" in layer.values]
    of_model = preset_for_model(models[0]) if models and isinstance(models[0], str) else None
    if of_model is not None and of_model != preset:
        # Below a preset that was named: one of a method ("upstream") says nothing of sizes.
        layers.append(_Layer(f"preset {of_model}", read_preset(of_model)))
        preset = preset or of_model
    values, origins = _merge(layers)
    return ResolvedSettings(_build(values), origins, preset)


def presets_folder() -> Path:
    """Where the shipped presets are.

    A wheel carries the repository's `configs/` as `cogedit/configs/`; a source checkout and an
    editable install have it beside the package. The package's own folder comes first: beside an
    installed package, `configs` would be somebody else's.
    """
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def preset_names() -> list[str]:
    """Names of the shipped presets, sorted."""
    return sorted(path.stem for path in presets_folder().glob("*.toml"))


def preset_for_model(model: str) -> str | None:
    """The preset of a Hub id of any owner or of a folder of that name; None where it has none."""
    name = re.split(r"[/\\]", model.rstrip("/\\"))[-1].lower()
    presets = {
        "cogvideox-2b": "cogvideox-2b",
        "cogvideox-5b": "cogvideox-5b",
        "cogvideox1.5-5b": "cogvideox-1.5-5b",
        "cogvideox-5b-i2v": "cogvideox-5b-i2v",
        "cogvideox1.5-5b-i2v": "cogvideox-1.5-5b-i2v",
    }
    return presets.get(name)


def _variable_name(key: str) -> str:
    return _PREFIX + key.replace(".", "_").upper()


def _environment_layer(environ: Mapping[str, str]) -> _Layer:
    known = {_variable_name(key): key for key in all_settings()}
    values: dict[str, object] = {}
    for name, text in environ.items():
        if not name.startswith(_PREFIX) or not text or name == CONFIG_VARIABLE:
            continue
        if name not in known:
            raise ConfigError(f"unknown environment variable {name}", hint=_nearest(name, [*known]))
        values[known[name]] = text
    return _Layer("environment", values, is_text=True)


def _file_of(config: str) -> Path:
    try:
        return path_of(config)
    except ValueError as error:
        raise ConfigError(f"cannot read {shown(config)}: {error}") from error


def is_file_name(config: str) -> bool:
    """Tell a TOML file from the name of a preset."""
    return config.endswith(".toml") or "/" in config or "\\" in config


def _read_file(path: Path, *, required: bool) -> tuple[dict[str, object], str | None]:
    """The values of a user's TOML file, and the preset that its key `config` names."""
    if not required and not path.exists():
        return {}, None
    values = _read_toml(path, path.name)
    config = values.pop("config", None)
    if config is not None and (not isinstance(config, str) or is_file_name(config)):
        raise _Layer(path.name, {}).refuse("config", config, "the name of a preset")
    return values, config


@functools.cache
def read_preset(preset: str) -> Mapping[str, object]:
    """The values of a shipped preset by dotted key; ConfigError if there is none of this name."""
    names = preset_names()
    if preset not in names:
        raise ConfigError(
            f"unknown preset {shown(preset)}, expected a preset or a file that ends in .toml",
            hint=_nearest(preset, names),
        )
    return _read_toml(presets_folder() / f"{preset}.toml", f"preset {preset}")


def _read_toml(path: Path, name: str) -> dict[str, object]:
    """The values of a TOML file by dotted key; tables are flattened, keys are checked."""
    parsed = parse_toml(decode(read_file(path, name), name), name)
    return _known_values(parsed, name, [*all_settings(), "config"])


def _known_values(
    parsed: Mapping[str, object], name: str, known: Sequence[str]
) -> dict[str, object]:
    """Flatten the tables of what was read, and refuse keys that are not `known`."""
    values = dict(_flatten(parsed))
    for key in values:
        if key in TABLES:
            raise _Layer(name, {}).refuse(key, values[key], "a table")
        if key not in known:
            hint = _nearest(key, [*known, *TABLES])
            raise ConfigError(f"unknown key `{key}` in {name}", hint=hint)
    return values


def check_values(
    parsed: Mapping[str, object], *, source: str, own: Sequence[str], is_text: bool
) -> dict[str, object]:
    """Check what a file says before anything runs.

    Args:
        parsed: Values by dotted key, or in tables.
        source: Name of the file, or of its row, for errors.
        own: Keys that are no settings and that the caller checks.
        is_text: Whether text stands for numbers, as in CSV.

    Returns:
        By dotted key, as they were written.

    Raises:
        ConfigError: An unknown key, or a value of a wrong type or out of range.
    """
    values = _known_values(parsed, source, [*own, *all_settings()])
    settings = {key: value for key, value in values.items() if key not in own}
    _merge([_Layer(source, settings, is_text)])
    return values


def _flatten(parsed: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for key, value in parsed.items():
        if key in TABLES and isinstance(value, dict):
            yield from ((f"{key}.{inner}", item) for inner, item in value.items())
        else:
            yield key, value


def _nearest(key: str, known: list[str]) -> str:
    """What was probably meant; the whole list where nothing is near."""
    if key == "reconstruct.prompt" and "prompt" not in known:
        return (
            "a prompt belongs to the command, `cogedit reconstruct --prompt PROMPT`; in Python to "
            "the call, `cogedit.reconstruct(source, prompts, settings)`"
        )
    if key in REMOVED:
        return REMOVED[key]
    key = key.lstrip("-").replace("-", "_")  # a flag in place of its key
    same_name = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    near = same_name or difflib.get_close_matches(key, known, n=1)
    if not near:
        return "expected one of " + ", ".join(known)
    return "did you mean " + " or ".join(f"`{name}`" for name in near) + "?"


def _merge(layers: list[_Layer]) -> tuple[dict[str, object], dict[str, str]]:
    """The first layer that has a key wins; values that lose are checked all the same."""
    known = all_settings()
    values: dict[str, object] = {}
    origins = dict.fromkeys(known, "default")
    for layer in reversed(layers):
        for key, raw in layer.values.items():
            if key not in known:
                raise UsageError(f"unknown setting {key}", hint=_nearest(key, [*known]))
            try:
                values[key] = known[key].read(raw, is_text=layer.is_text)
            except ValueError as error:
                raise layer.refuse(key, raw, str(error)) from error
            origins[key] = layer.origin(key)
    return values, origins


def _build(values: Mapping[str, object]) -> Settings:
    changes: dict[str, dict[str, object]] = {name: {} for name in ("", *TABLES)}
    for key, value in values.items():
        table, _, name = key.rpartition(".")
        changes[table][name] = value
    default = Settings()
    tables = {name: _replace(getattr(default, name), changes[name]) for name in TABLES}
    return _replace(default, changes[""] | tables)


def _replace(record: RecordT, changes: Mapping[str, object]) -> RecordT:
    # Each value was read by its own setting, which mypy cannot follow.
    return cast(Callable[..., RecordT], replace)(record, **changes)
