"""Edit real videos by text with CogVideoX: invert once, edit many times.

    import cogedit

    settings = cogedit.settings_for("clip.mp4", {"model": "shapes"}).settings
    inverted = cogedit.invert("clip.mp4", settings)
    edits = cogedit.reconstruct(inverted.path, ["a red square"], settings)
    cogedit.export(edits[0].path, settings)

Importing the package is quick: the stages come with the first name that is used, torch with the
first stage that computes. Every error raised on purpose is a `CogeditError`; the tree is in
`cogedit.errors`.
"""

TYPE_CHECKING = False  # that of `typing`, whose import a program would wait for at its start
if TYPE_CHECKING:
    from cogedit.errors import CogeditError
    from cogedit.stages import (
        Exported,
        InversionCheck,
        Run,
        Session,
        Settings,
        Written,
        check_inversion,
        edit,
        encode,
        export,
        invert,
        load,
        psnr,
        read_clip,
        reconstruct,
        save_frame,
        settings_for,
        ssim,
        write_clip,
    )
    from cogedit.tools import Estimate, LayerProbe, Swept, compare, estimate, probe_layers, sweep
    from cogedit.version import __version__

__all__ = [
    "CogeditError",
    "Estimate",
    "Exported",
    "InversionCheck",
    "LayerProbe",
    "Run",
    "Session",
    "Settings",
    "Swept",
    "Written",
    "__version__",
    "check_inversion",
    "compare",
    "edit",
    "encode",
    "estimate",
    "export",
    "invert",
    "load",
    "probe_layers",
    "psnr",
    "read_clip",
    "reconstruct",
    "save_frame",
    "settings_for",
    "ssim",
    "sweep",
    "write_clip",
]


def __getattr__(name: str) -> object:
    """Bring the stages when one of them is named (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object
    if name in ("CogeditError", "__version__"):
        from cogedit import errors, version

        value = getattr(version if name == "__version__" else errors, name)
    else:
        from cogedit import stages, tools

        value = getattr(tools if name in tools.__all__ else stages, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
