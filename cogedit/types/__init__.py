"""The settings of the stages, as frozen records.

A settings record holds what changes the results of its stage and nothing else. The configuration
produces it, the stage consumes it and the artifact's record keeps it. Each setting is described
where it is declared (`cogedit.schema`), and nowhere else.
"""

from cogedit.types.clip import (
    EncodeSettings,
    LoadSettings,
)
from cogedit.types.edit import ReconstructSettings
from cogedit.types.export import ExportSettings
from cogedit.types.inversion import InvertSettings, WindowPlan
from cogedit.types.transformer import (
    INEXACT_BACKENDS,
    LoraFile,
    Loras,
    TransformerSettings,
)
from cogedit.types.words import (
    ArtifactKind,
    AttentionBackend,
    Codec,
    ComparisonLayout,
    Composite,
    DType,
    InjectionMode,
    InjectionTokens,
    InverseStep,
    Offload,
    ResizeMode,
    Solver,
    VideoSize,
    Weights,
)

__all__ = [
    "INEXACT_BACKENDS",
    "ArtifactKind",
    "AttentionBackend",
    "Codec",
    "ComparisonLayout",
    "Composite",
    "DType",
    "EncodeSettings",
    "ExportSettings",
    "InjectionMode",
    "InjectionTokens",
    "InverseStep",
    "InvertSettings",
    "LoadSettings",
    "LoraFile",
    "Loras",
    "Offload",
    "ReconstructSettings",
    "ResizeMode",
    "Solver",
    "TransformerSettings",
    "VideoSize",
    "Weights",
    "WindowPlan",
]
