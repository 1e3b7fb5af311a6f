"""Settings: what they are, and where each value of a run comes from."""

from cogedit.config.batch_file import BatchRow, read_batch
from cogedit.config.in_python import in_python
from cogedit.config.resolve import (
    CONFIG_FILE,
    CONFIG_VARIABLE,
    ResolvedSettings,
    is_file_name,
    preset_for_model,
    preset_names,
    presets_folder,
    read_preset,
    resolve_settings,
)
from cogedit.config.settings import TABLES, Settings, all_settings, check_settings
from cogedit.config.toml import setting_values, settings_toml
from cogedit.errors import explain_options
from cogedit.schema import plain_value

__all__ = [
    "CONFIG_FILE",
    "CONFIG_VARIABLE",
    "TABLES",
    "BatchRow",
    "ResolvedSettings",
    "Settings",
    "all_settings",
    "check_settings",
    "is_file_name",
    "plain_value",
    "preset_for_model",
    "preset_names",
    "presets_folder",
    "read_batch",
    "read_preset",
    "resolve_settings",
    "setting_values",
    "settings_toml",
]

explain_options(in_python)
