"""The options that commands share, as tables: what each is called, takes and says.

An option that changes a setting carries the setting's dotted key, the same as in a TOML file; its
type, range and default live in `cogedit.config`. Its value is None where the user did not give it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from copy import copy
from pathlib import Path
from typing import Annotated

import typer

_EDIT, _SOURCE, _INVERSION, _MASK = "Edit", "Hold of the source", "Inversion", "Mask"
_CLIP, _VIDEO, _FILES, _MODEL, _SPEED = "Clip", "Video", "Files", "Model", "Speed and memory"
_PANELS = (None, _EDIT, _SOURCE, _INVERSION, _MASK, _CLIP, _VIDEO, _FILES, _MODEL, _SPEED)
"""Groups of options in a help text, what is asked for most often first."""

Complete = Callable[[str], list[str]]
"""From what was typed so far to the words that go on from it."""


def _option(
    text: str, panel: str | None, *, metavar: str | None = None, complete: Complete | None = None
) -> object:
    return typer.Option(
        help=text,
        rich_help_panel=panel,
        metavar=metavar,
        show_default=False,
        autocompletion=complete,
    )


def _one_of(words: Callable[[], Collection[str]]) -> Complete:
    def complete(incomplete: str) -> list[str]:  # typer knows the parameter by this name
        return [word for word in words() if word.startswith(incomplete)]

    return complete


def _known_models() -> Collection[str]:
    from cogedit.stages.settings import known_models

    return known_models()


def _preset_names() -> Collection[str]:
    from cogedit.config import preset_names

    return preset_names()


def _choices(key: str) -> Collection[str]:
    from cogedit.config import setting_choices

    return setting_choices(key)


SETTINGS: Mapping[str, object] = {
    "model": Annotated[
        str | None,
        _option(
            "Hub id, folder, or 'shapes' (embedded). Default: the artifact's model; for a video, "
            "CogVideoX-5B on a CUDA device and 'shapes' elsewhere.",
            _MODEL,
            metavar="ID|DIR",
            complete=_one_of(_known_models),
        ),
    ],
    "revision": Annotated[
        str | None, _option("Branch, tag or commit of a hub model.", _MODEL, metavar="REV")
    ],
    "dtype": Annotated[
        str | None,
        _option("bf16, fp16 or fp32. Default: the model's own.", _MODEL, metavar="DTYPE"),
    ],
    "weights": Annotated[
        str | None,
        _option(
            "Keep the transformer's weights in bf16, fp8 or int8 (which needs torchao), for less "
            "memory; changes the numbers. Default: as --dtype.",
            _MODEL,
            metavar="FORMAT",
        ),
    ],
    "offload": Annotated[
        str | None,
        _option(
            "Where the transformer's weights wait: none (on the device), model or group (in host "
            "memory, between passes or layers), auto (the fastest that fits). Default: auto.",
            _MODEL,
            metavar="WHERE",
        ),
    ],
    "device": Annotated[
        str | None,
        _option("auto, cuda, cuda:N, mps or cpu. Default: auto.", _MODEL, metavar="DEVICE"),
    ],
    "workspace": Annotated[
        Path | None,
        _option("Folder of the artifacts. Default: VIDEO-NAME.cogedit here.", _FILES),
    ],
    "cache": Annotated[
        Path | None,
        _option("Folder of the prompt embeddings. Default: ~/.cache/cogedit.", _FILES),
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
        str | None,
        _option(
            "How the aspect is met: crop, pad or stretch. Default: crop.", _CLIP, metavar="MODE"
        ),
    ],
    "encode.vae_tiling": Annotated[
        bool | None,
        _option("Encode and decode in tiles: less memory.", _SPEED),
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
        str | None,
        _option(
            "Corrections per step, one model call each, or 'auto': as many as the residual asks "
            "for. Default: 1.",
            _INVERSION,
            metavar="K|auto",
        ),
    ],
    "reconstruct.method": Annotated[
        str | None,
        _option(
            "injection: sample beside the source; flow: carry an offset from it. "
            "Default: injection.",
            _EDIT,
            metavar="METHOD",
        ),
    ],
    "reconstruct.num_inference_steps": Annotated[
        int | None, _option("Steps of the edit. Default: the inversion's.", _EDIT)
    ],
    "reconstruct.solver": Annotated[
        str | None,
        _option(
            "ddim, or dpm++2m: of second order at the same calls, for few steps. Default: ddim.",
            _EDIT,
            metavar="SOLVER",
        ),
    ],
    "reconstruct.negative_prompt": Annotated[
        str | None, _option("What the edit does not show.", _EDIT)
    ],
    "reconstruct.guidance_scale": Annotated[
        float | None, _option("How strongly the prompt steers. Default: 4.", _EDIT)
    ],
    "reconstruct.guidance_steps": Annotated[
        str | None,
        _option(
            "Part of the steps with guidance, such as 0.0:0.8. Default: 0.1:0.9.",
            _EDIT,
            metavar="FIRST:LAST",
        ),
    ],
    "reconstruct.unconditional": Annotated[
        str | None,
        _option(
            "Text on the other side of guidance: the negative prompt ('negative') or the source's "
            "own ('source').",
            _EDIT,
            metavar="TEXT",
        ),
    ],
    "reconstruct.source_guidance_scale": Annotated[
        float | None, _option("Guidance of the source's side of the flow. Default: 1.", _EDIT)
    ],
    "reconstruct.seed": Annotated[
        int | None, _option("Seed of random start noise. Default: 42.", _EDIT)
    ],
    "reconstruct.start": Annotated[
        str | None,
        _option(
            "Start from the source's noise (inverted) or another (random). Default: inverted.",
            _SOURCE,
            metavar="START",
        ),
    ],
    "reconstruct.start_noise": Annotated[
        float | None,
        _option("Share of random noise in the start, 0 (inverted) to 1 (random).", _SOURCE),
    ],
    "reconstruct.start_step": Annotated[
        int | None, _option("Leave out this many of the noisiest steps.", _SOURCE)
    ],
    "reconstruct.drift_correction": Annotated[
        float | None,
        _option(
            "Share of the inversion's own error that is added back in --injection-steps, 0 to 1.",
            _SOURCE,
        ),
    ],
    "reconstruct.injection_strength": Annotated[
        float | None, _option("Hold of the source on the edit, 0 or more. Default: 1.", _SOURCE)
    ],
    "reconstruct.injection_steps": Annotated[
        str | None,
        _option(
            "Part of the steps with injection, such as 0.0:0.5. Default: 0.0:0.6.",
            _SOURCE,
            metavar="FIRST:LAST",
        ),
    ],
    "reconstruct.injection_layers": Annotated[
        str | None,
        _option("Layers with injection, such as 0:21 or 0:END.", _SOURCE, metavar="FIRST:END"),
    ],
    "reconstruct.injection_mode": Annotated[
        str | None,
        _option(
            "concatenate: attend to both clips; queries-keys: attend where the source does. "
            "Default: concatenate.",
            _SOURCE,
            metavar="MODE",
        ),
    ],
    "reconstruct.injection_tokens": Annotated[
        str | None,
        _option(
            "What is seen of the source: its image (image), its text too (all), or its image and "
            "the edit's own text again (own-text). Default: own-text.",
            _SOURCE,
            metavar="TOKENS",
        ),
    ],
    "reconstruct.reference_prompt": Annotated[
        str | None,
        _option(
            "Text that the source is seen under: the edit's (edit), or the inversion's "
            "(inversion). Default: inversion.",
            _SOURCE,
            metavar="TEXT",
        ),
    ],
    "reconstruct.reference_rows": Annotated[
        str | None,
        _option(
            "Views of the source: one for each side of guidance (two), or one for both (one). "
            "Default: one.",
            _SOURCE,
            metavar="ROWS",
        ),
    ],
    "reconstruct.mask_dilation": Annotated[
        int | None,
        _option("How many latents the mask reaches further. Default: 1, of a found one 0.", _MASK),
    ],
    "reconstruct.auto_mask": Annotated[
        bool | None,
        _option("Find the mask where the prompt and --source-prompt predict differently.", _MASK),
    ],
    "reconstruct.auto_mask_threshold": Annotated[
        float | None,
        _option("How different, 0 to 1 of the strongest; lower is larger. Default: 0.35.", _MASK),
    ],
    "transformer.rows": Annotated[
        str | None,
        _option(
            "Rows of the model for N prompts: shared (2N + 1, all see the source in one way), "
            "exact (3N + 1) or upstream (4N, the numbers of exact). Default: shared.",
            _SPEED,
            metavar="MODE",
        ),
    ],
    "transformer.max_rows": Annotated[
        int | None,
        _option("Rows at a time in a layer; fewer need less memory. Default: by size.", _SPEED),
    ],
    "transformer.attention_backend": Annotated[
        str | None,
        _option(
            "Kernel of the attention: native, cudnn, flash, flash3, sage (8 bits), xformers, "
            "efficient or math.",
            _SPEED,
            metavar="KERNEL",
        ),
    ],
    "transformer.compile": Annotated[
        bool | None, _option("Compile the model's blocks: a slow start, faster steps.", _SPEED)
    ],
    "export.composite": Annotated[
        str | None,
        _option(
            "Outside the mask show the source after the VAE ('decode'), its own frames "
            "('source'), or the edit ('none'). Default: decode; source where edges are aligned.",
            _MASK,
            metavar="WHAT",
        ),
    ],
    "export.feather": Annotated[
        int | None,
        _option(
            "Pixels of passage from the source to the edit, inside the mask. Default: 0.", _MASK
        ),
    ],
    "export.align_edges": Annotated[
        int | None,
        _option(
            "Fit changes of colour and light to the source's edges, in windows of this radius; "
            "grain and texture stay the source's own. Default: 0, off.",
            _VIDEO,
            metavar="PIXELS",
        ),
    ],
    "export.fps": Annotated[
        str | None,
        _option("Frames per second, such as 24 or 30000/1001. Default: the clip's.", _VIDEO),
    ],
    "export.codec": Annotated[
        str | None,
        _option(
            "h264, h265, av1, prores, ffv1, gif, or png (a folder of pictures). Default: gif for a "
            "file of that suffix, otherwise h264.",
            _VIDEO,
            metavar="CODEC",
        ),
    ],
    "export.crf": Annotated[
        int | None,
        _option("Quality, 0 (best) to 51, of av1 to 63. Default: 18; of h265 20.", _VIDEO),
    ],
    "export.lossless": Annotated[
        bool | None, _option("Keep every pixel exactly (h264, h265, ffv1, png).", _VIDEO)
    ],
    "export.size": Annotated[
        str | None,
        _option(
            "clip, or source: the source's own size, with the crop or the bars undone. "
            "Default: clip.",
            _VIDEO,
            metavar="SIZE",
        ),
    ],
    "export.sound": Annotated[
        bool | None,
        _option(
            "Carry the source's sound over while the duration is unchanged. Default: yes.", _VIDEO
        ),
    ],
}
"""Options by the dotted key that they set."""

GLOBAL_SETTINGS = tuple(key for key in SETTINGS if "." not in key)
"""Those of no stage in particular."""

RUNNING: Mapping[str, object] = {
    "config": Annotated[
        str | None,
        _option(
            "Preset, or a TOML file: settings under a name.",
            None,
            metavar="NAME|FILE.toml",
            complete=_one_of(_preset_names),
        ),
    ],
    "force": Annotated[
        bool,
        typer.Option(
            "--force", help="Make anew what the command makes; what that is made of is reused."
        ),
    ],
    "json_output": Annotated[bool, typer.Option("--json", help="Print one JSON object.")],
    "jsonl": Annotated[
        bool,
        typer.Option(
            "--jsonl", help="Tell steps, notes and errors as JSON objects, a line each, on stderr."
        ),
    ],
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="Errors only.")],
    "verbose": Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")],
    "debug": Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")],
}
"""Options of every command that change no number."""

EDITING: Mapping[str, object] = {
    "preview": Annotated[
        bool,
        typer.Option("--preview", help="Show the edit as it forms, small, under the bar."),
    ],
}
"""The same for commands that denoise edits."""

BESIDE_AN_EDIT = {
    "invert.prompt": "--source-prompt",
    "invert.guidance_scale": "--inversion-guidance-scale",
    "invert.num_inference_steps": "--inversion-steps",
}
"""Flags of the inversion on commands that also edit, where the plain names are the edit's."""


def named_option(key: str, flag: str) -> object:
    """Give the option of a dotted key its flag on one command."""
    annotation = SETTINGS[key]
    value_type = annotation.__origin__  # type: ignore[attr-defined]
    option = copy(annotation.__metadata__[0])  # type: ignore[attr-defined]
    if value_type == str | None and option.autocompletion is None:
        option.autocompletion = _one_of(functools.partial(_choices, key))
    option.param_decls = (f"{flag}/--no-{flag[2:]}" if value_type == bool | None else flag,)
    return Annotated[value_type, option]


def flag_for(key: str, tables: Collection[str] = ()) -> str:
    """Return the flag of a dotted key on a command with these tables."""
    if "reconstruct" in tables and key in BESIDE_AN_EDIT:
        return BESIDE_AN_EDIT[key]
    return "--" + key.rpartition(".")[2].replace("_", "-")


def help_order(parameter: inspect.Parameter) -> int:
    """Return where the group of a command's parameter stands in its help text."""
    declared = parameter.annotation.__metadata__[0]
    return _PANELS.index(declared.rich_help_panel)
