"""Options that commands share, declared once and added to a command by table.

An option that changes a setting carries the setting's dotted key, the same as in a TOML file; its
type, range and default live in `cogedit.config`. Its value is None where the user did not give it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_type_hints

import typer

from cogedit.cli.screen import Screen, handle_errors
from cogedit.config import ResolvedSettings, Settings
from cogedit.errors import UsageError
from cogedit.stages.run import Run
from cogedit.stages.settings import settings_for

_MODEL, _FILES, _CLIP, _VAE = "Model", "Files", "Clip", "VAE"
_INVERSION, _EDIT, _VIDEO = "Inversion", "Edit", "Video"


def _option(text: str, panel: str, *, metavar: str | None = None) -> object:
    return typer.Option(help=text, rich_help_panel=panel, metavar=metavar, show_default=False)


SETTINGS: Mapping[str, object] = {
    "model": Annotated[
        str | None,
        _option(
            "Hub id, folder, or 'shapes' (embedded). Default: the artifact's model; for a video, "
            "CogVideoX-5B on a CUDA device and 'shapes' elsewhere.",
            _MODEL,
            metavar="ID|DIR",
        ),
    ],
    "revision": Annotated[
        str | None, _option("Branch, tag or commit of a hub model.", _MODEL, metavar="REV")
    ],
    "dtype": Annotated[
        str | None,
        _option("bf16, fp16 or fp32. Default: the model's own.", _MODEL, metavar="DTYPE"),
    ],
    "device": Annotated[
        str | None, _option("auto, cuda, cuda:N, mps or cpu.", _MODEL, metavar="DEVICE")
    ],
    "workspace": Annotated[
        Path | None,
        _option("Folder of the artifacts. Default: VIDEO-NAME.cogedit here.", _FILES),
    ],
    "load.width": Annotated[int | None, _option("Width. Default: the model's own.", _CLIP)],
    "load.height": Annotated[int | None, _option("Height. Default: the model's own.", _CLIP)],
    "load.max_num_frames": Annotated[
        int | None, _option("At most this many frames; snaps down to 8n + 1.", _CLIP)
    ],
    "load.skip_frames_start": Annotated[
        int | None, _option("Frames left out at the start.", _CLIP)
    ],
    "load.skip_frames_end": Annotated[int | None, _option("Frames left out at the end.", _CLIP)],
    "load.frame_sample_step": Annotated[
        int | None, _option("Take every n-th frame. Default: spread over the video.", _CLIP)
    ],
    "load.resize_mode": Annotated[
        str | None, _option("How the aspect is met: crop, pad or stretch.", _CLIP, metavar="MODE")
    ],
    "encode.vae_tiling": Annotated[
        bool | None,
        _option("Encode and decode in tiles: less memory.", _VAE),
    ],
    "invert.prompt": Annotated[
        str | None, _option("What the source shows. Default: the empty prompt.", _INVERSION)
    ],
    "invert.guidance_scale": Annotated[
        float | None, _option("Guidance of the inversion. Default: 1, none.", _INVERSION)
    ],
    "invert.num_inference_steps": Annotated[
        int | None, _option("Noise levels to visit, up and down. Default: 50.", _INVERSION)
    ],
    "invert.inverse": Annotated[
        str | None,
        _option(
            "Step of the inversion: consistent (accurate) or upstream (DDIMInverseScheduler).",
            _INVERSION,
            metavar="STEP",
        ),
    ],
    "invert.inversion_iterations": Annotated[
        int | None, _option("Corrections per step, one model call each. Default: 1.", _INVERSION)
    ],
    "reconstruct.negative_prompt": Annotated[
        str | None, _option("What the edit does not show.", _EDIT)
    ],
    "reconstruct.guidance_scale": Annotated[
        float | None, _option("How strongly the prompt steers. Default: 6.", _EDIT)
    ],
    "reconstruct.seed": Annotated[int | None, _option("Seed of the start noise.", _EDIT)],
    "reconstruct.start": Annotated[
        str | None,
        _option("Start from random noise or from the inverted.", _EDIT, metavar="START"),
    ],
    "reconstruct.injection_strength": Annotated[
        float | None, _option("Hold of the source on the edit, 0 to 1.", _EDIT)
    ],
    "reconstruct.injection_steps": Annotated[
        str | None,
        _option("Part of the steps with injection, such as 0.0:0.5.", _EDIT, metavar="FIRST:LAST"),
    ],
    "reconstruct.injection_layers": Annotated[
        str | None,
        _option("Layers with injection, such as 0:21 or 0:END.", _EDIT, metavar="FIRST:END"),
    ],
    "export.fps": Annotated[
        str | None,
        _option("Frames per second, such as 24 or 30000/1001. Default: the clip's.", _VIDEO),
    ],
    "export.crf": Annotated[int | None, _option("Quality of x264, 0 (lossless) to 51.", _VIDEO)],
}
"""Options by the dotted key that they set."""

RUNNING: Mapping[str, object] = {
    "config": Annotated[
        str | None, _option("Preset, or a TOML file.", _FILES, metavar="NAME|FILE.toml")
    ],
    "force": Annotated[bool, typer.Option("--force", help="Make anew what is there.")],
    "json_output": Annotated[bool, typer.Option("--json", help="Print one JSON object.")],
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="Errors only.")],
    "verbose": Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")],
    "debug": Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")],
}
"""Options of every command that change no number."""

_STAGES = {"frames": ("load",), "latents": ("load", "encode")}
_STAGES["trajectory"] = (*_STAGES["latents"], "invert")
_STAGES["edit"] = _STAGES["trajectory"]


@dataclass(frozen=True)
class Call:
    """What a command was told besides its own arguments.

    Attributes:
        flags: Settings by dotted key, those that were given.
        config: Preset or TOML file.
        force: Make anew what is there.
        screen: Where the command shows what it does.
    """

    flags: Mapping[str, object]
    config: str | None
    force: bool
    screen: Screen

    @property
    def run(self) -> Run:
        """How the stages run under this command."""
        return Run(force=self.force, say=self.screen.say, progress=self.screen.progress)

    def settings(self, source: Path | None) -> Settings:
        """Settle the settings, say which model was chosen where nobody named one.

        Raises:
            UsageError: A flag is out of range, or belongs to a stage that `source` is past.
        """
        from cogedit.artifacts import sniff_kind

        kind = sniff_kind(source) if source is not None else None
        past = _STAGES.get(kind, ()) if kind is not None else ()
        for key in self.flags:
            if key.partition(".")[0] in past:
                raise UsageError(
                    f"{_flag(key)} has no effect: {source} is past `{key.partition('.')[0]}`",
                    hint=f"leave {_flag(key)} out, or start from the video",
                )
        resolved = settings_for(source, self.flags, config=self.config)
        self._tell(resolved)
        return resolved.settings

    def _tell(self, resolved: ResolvedSettings) -> None:
        origin = resolved.origins["model"]
        if origin.startswith("this machine"):
            self.screen.say(f"model {resolved.settings.model}: {origin} (--model chooses another)")
        for key, where in resolved.origins.items():
            if where != "default":
                self.screen.detail(f"{key}: from {where}")


def with_options(
    *tables: str, without: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of some tables, those of every command, and its error handling.

    The command takes a `Call` as its first parameter and declares only its own arguments.

    Args:
        tables: Names of settings tables; the top-level settings are always there.
        without: Dotted keys to leave out.
    """
    keys = {
        key: f"{key.replace('.', '__')}"
        for key in SETTINGS
        if ("." not in key or key.partition(".")[0] in tables) and key not in without
    }

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [*inspect.signature(command).parameters.values()][1:]
        hints = get_type_hints(command, include_extras=True)

        @functools.wraps(command)
        def called(**values: object) -> None:
            given = {key: values.pop(name) for key, name in keys.items()}
            running = {name: values.pop(name) for name in RUNNING}
            screen = Screen(
                json_output=bool(running["json_output"]),
                quiet=bool(running["quiet"]),
                verbose=bool(running["verbose"]),
            )
            config = running["config"]
            call = Call(
                flags={key: value for key, value in given.items() if value is not None},
                config=config if isinstance(config, str) else None,
                force=bool(running["force"]),
                screen=screen,
            )
            with handle_errors(screen, debug=bool(running["debug"])):
                command(call, **values)

        keyword = inspect.Parameter.KEYWORD_ONLY
        added = [
            inspect.Parameter(name, keyword, default=None, annotation=_named(key))
            for key, name in keys.items()
        ] + [
            inspect.Parameter(
                name, keyword, default=None if name == "config" else False, annotation=annotation
            )
            for name, annotation in RUNNING.items()
        ]
        resolved = [p.replace(kind=keyword, annotation=hints[p.name]) for p in own]
        parameters = [*resolved, *added]
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
        del called.__wrapped__
        return called

    return decorate


def _named(key: str) -> object:
    """Give the option of a dotted key its flag, such as --guidance-scale."""
    annotation = SETTINGS[key]
    option = annotation.__metadata__[0]  # type: ignore[attr-defined]
    flag = _flag(key)
    is_switch = annotation.__origin__ == bool | None  # type: ignore[attr-defined]
    option.param_decls = (f"{flag}/--no-{flag[2:]}" if is_switch else flag,)
    return annotation


def _flag(key: str) -> str:
    return "--" + key.rpartition(".")[2].replace("_", "-")
