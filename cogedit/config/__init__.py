"""Settings: what they are, and where each value of a run comes from."""

from cogedit.config.resolve import (
    CONFIG_FILE,
    CONFIG_VARIABLE,
    ResolvedSettings,
    preset_for_model,
    preset_names,
    presets_folder,
    resolve_settings,
)
from cogedit.config.settings import Settings, check_settings

__all__ = [
    "CONFIG_FILE",
    "CONFIG_VARIABLE",
    "ResolvedSettings",
    "Settings",
    "check_settings",
    "preset_for_model",
    "preset_names",
    "presets_folder",
    "resolve_settings",
]
