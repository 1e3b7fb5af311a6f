"""Edit configurations that the quality benchmark can compare: all settings but the prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cogedit.config import preset_names, presets_folder, resolve_settings
from cogedit.errors import UsageError
from cogedit.lab.cases import EDIT_KINDS, EditKind
from cogedit.types import InvertSettings, ReconstructSettings, WindowPlan

STEPS = 50
"""Inference steps of upstream, for which the built-in configurations are written."""


@dataclass(frozen=True)
class Inversion:
    """How the source clips are inverted; equal inversions are run once and shared.

    Attributes:
        settings: Settings of the stage.
        under_caption: Invert each clip under its own caption instead of `settings.prompt`.
        windows: What the model sees at a time, in the edits, too; None is the whole clip.
    """

    settings: InvertSettings = field(default_factory=InvertSettings)
    under_caption: bool = False
    windows: WindowPlan | None = None

    def prompts(self, captions: Sequence[str]) -> list[str]:
        """Return the prompt under which each clip is inverted."""
        return list(captions) if self.under_caption else [self.settings.prompt] * len(captions)


@dataclass(frozen=True)
class Configuration:
    """One way to edit.

    Attributes:
        name: Its row in the tables.
        inversion: How the source is inverted.
        reconstruct: How it is edited; the prompt is filled in per clip. The seed of a clip's start
            noise is `reconstruct.seed` plus the clip's number.
        exact_mask: Give each edit its exact mask, which the world knows. Outside it, as with
            `reconstruct.auto_mask`, the source's round trip is put back.
        align_edges: Let edges follow the source's own frames, within this radius in pixels.
        with_prompt: Give the prompt to a model that takes the edited first frame, too.
        kinds: The kinds of edit that it is meant for.
    """

    name: str
    inversion: Inversion = field(default_factory=Inversion)
    reconstruct: ReconstructSettings = field(default_factory=lambda: ReconstructSettings(prompt=""))
    exact_mask: bool = False
    align_edges: int = 0
    with_prompt: bool = False
    kinds: tuple[EditKind, ...] = EDIT_KINDS

    def with_steps(self, num_inference_steps: int) -> Configuration:
        """Return the same configuration with another number of steps in place of 50.

        One with fewer than 50 keeps its share: at least two in the inversion and one in the edit.
        """
        share = num_inference_steps / STEPS
        up, down = self.inversion.settings.num_inference_steps, self.reconstruct.num_inference_steps
        settings = replace(self.inversion.settings, num_inference_steps=max(2, round(share * up)))
        scaled = None if down is None else max(1, round(share * down))
        return replace(
            self,
            inversion=replace(self.inversion, settings=settings),
            reconstruct=replace(self.reconstruct, num_inference_steps=scaled),
        )


_LEVELS = InvertSettings(num_inference_steps=STEPS, inverse="consistent", low_levels=None)
_ACCURATE = Inversion(_LEVELS)
_UPSTREAM_INVERSION = Inversion(replace(_LEVELS, guidance_scale=6.0, inverse="upstream"))
UPSTREAM_EDIT = ReconstructSettings(
    prompt="",
    guidance_scale=6.0,
    guidance_steps=(0.0, 1.0),
    guidance_reuse=0.0,
    solver="ddim",
    start="random",
    injection_strength=1.0,
    injection_tokens="all",
    injection_recentering=0.0,
    injection_steps=(0.0, 1.0),
    injection_layers=(0, None),
    reference_prompt="edit",
    reference_rows="two",
)
"""How the CogVideo repository's script denoises; the prompt is left open."""

_SHARED = replace(UPSTREAM_EDIT, reference_prompt="inversion", reference_rows="one")
_SHARED_HALF = replace(_SHARED, injection_steps=(0.0, 0.5))
# As configs/balanced.toml has it.
_BALANCED = replace(
    _SHARED,
    start="inverted",
    guidance_scale=5.0,
    injection_strength=(2.5, 0.0),
    injection_tokens="own-text",
    injection_recentering=0.5,
    injection_steps=(0.0, 0.95),
    guidance_steps=(0.1, 0.8),
    guidance_reuse=0.05,
)
_UNDER_CAPTION = Inversion(
    replace(_LEVELS, num_inference_steps=24, low_levels=None), under_caption=True
)

# Each is `balanced` under the source's caption with one setting changed, and what goes with it.
_CONTROLS: dict[str, dict[str, object]] = {
    "no-injection": {"injection_strength": 0.0},
    "half-strength": {"injection_strength": 0.5},
    "first-third": {"injection_steps": (0.0, 0.33)},
    "sixty-percent": {"injection_strength": 1.0, "injection_steps": (0.0, 0.6)},
    "full-strength": {"injection_strength": 1.0},
    "later-layers": {"injection_layers": (1, None)},
    "double-strength": {"injection_strength": 2.0},
    "all-tokens": {"injection_tokens": "all"},
    "image-tokens": {"injection_tokens": "image"},
    "not-recentered": {"injection_recentering": 0.0},
    "queries-keys": {"injection_mode": "queries-keys", "injection_strength": 1.0},
    "image-queries-keys": {"injection_mode": "image-queries-keys", "injection_strength": 1.0},
    "edit-reference": {"reference_prompt": "edit"},
    "two-references": {"reference_rows": "two", "reference_prompt": "edit"},
    "source-side": {"unconditional": "source", "guidance_scale": 2.0},
    "negative-prompt": {"negative_prompt": "a gray circle on a gray background"},
    "guidance-predicted": {"guidance_reuse": 0.0},
    "guided-throughout": {"guidance_steps": (0.0, 1.0)},
    "guided-later": {"guidance_steps": (0.3, 1.0)},
    "random-start": {"start": "random"},
    "mixed-start": {"start_noise": 0.5},
    "later-start": {"start_step": 5},
    "dpm++2m": {"solver": "dpm++2m"},
    "dpm++2m-20": {"solver": "dpm++2m", "num_inference_steps": 20},
    "ddim-20": {"num_inference_steps": 20},
    "flow": {"method": "flow", "injection_strength": 0.0},
    "flow-injected": {"method": "flow"},
    "flow-later": {"method": "flow", "injection_strength": 0.0, "start_step": 5},
    "flow-noise": {"method": "flow", "injection_strength": 0.0, "start": "random"},
    "auto-mask": {"auto_mask": True},
}


def _control(name: str, changes: Mapping[str, object]) -> Configuration:
    edit = replace(_BALANCED, **changes)  # type: ignore[arg-type]
    return Configuration(name, _UNDER_CAPTION, edit)


# Spelt out, not taken from defaults or presets: a row must keep its meaning when those change.
# Only "default" follows them, and the controls, which follow `balanced` by hand.
BUILT_IN: dict[str, Configuration] = {
    configuration.name: configuration
    for configuration in (
        Configuration("upstream", _UPSTREAM_INVERSION, UPSTREAM_EDIT),
        Configuration("default"),
        Configuration("accurate-upstream", _ACCURATE, UPSTREAM_EDIT),
        Configuration("shared", _ACCURATE, _SHARED),
        Configuration("shared-half", _ACCURATE, _SHARED_HALF),
        Configuration(
            "shared-half-guided", _ACCURATE, replace(_SHARED_HALF, guidance_steps=(0.0, 0.5))
        ),
        *(_control(name, changes) for name, changes in _CONTROLS.items()),
        replace(_control("exact-mask", {}), exact_mask=True),
    )
}
"""Configurations by name."""

ALWAYS = ("upstream", "default")
"""Rows of every run of a text-to-video model."""

ALWAYS_WITH_FRAME = ("first-frame",)
"""Rows of every run of a model that takes a first frame: its preset."""

_CAPTION, _MASK, _PROMPT = "@caption", "@mask", "@prompt"


def find_configuration(name: str) -> Configuration:
    """Return a configuration by name.

    Args:
        name: A built-in one, a preset of `configs/`, or a TOML file as for `--config`. Presets and
            files are read for the tables `invert` and `reconstruct` and for `export.align_edges`.
            With `@caption` appended, each clip is inverted under its own caption, as with
            `--source-prompt`; with `@mask`, each edit gets its exact mask; with `@prompt`, one of a
            first frame gets its prompt, too; with `=color,same` at the end, it is run for these
            kinds of edit alone.

    Raises:
        ConfigError: The file cannot be read, or a value in it is out of range.
        UsageError: There is no such configuration, or no such kind of edit.
    """
    head, equals, tail = name.rpartition("=")
    kinds = tuple(kind for kind in EDIT_KINDS if kind in tail.split(","))
    if equals and len(kinds) == len(tail.split(",")):
        return replace(find_configuration(head), kinds=kinds)
    if name.endswith(_CAPTION):
        found = find_configuration(name.removesuffix(_CAPTION))
        inversion = replace(found.inversion, under_caption=True)
        return replace(found, name=found.name + _CAPTION, inversion=inversion)
    if name.endswith(_MASK):
        found = find_configuration(name.removesuffix(_MASK))
        return replace(found, name=found.name + _MASK, exact_mask=True)
    if name.endswith(_PROMPT):
        found = find_configuration(name.removesuffix(_PROMPT))
        return replace(found, name=found.name + _PROMPT, with_prompt=True)
    if name in BUILT_IN:
        return BUILT_IN[name]
    path = Path(name)
    if path.suffix == ".toml":
        config = str(path.resolve())
    elif name in preset_names():
        config = name
    else:
        raise UsageError(
            f"configuration {name!r} not found",
            hint=f"choose among {', '.join([*BUILT_IN, *preset_names()])}, or name a TOML file",
        )
    # No environment variable and no cogedit.toml, which the presets' own folder does not have.
    settings = resolve_settings({}, config=config, environ={}, cwd=presets_folder()).settings
    return Configuration(
        path.stem,
        Inversion(settings.invert),
        settings.reconstruct,
        align_edges=settings.export.align_edges,
    )


def choose_configurations(
    names: Sequence[str], *, num_inference_steps: int, always: Sequence[str] = ALWAYS
) -> tuple[Configuration, ...]:
    """Return the rows of a run, each once: `always`, then the named ones (`find_configuration`).

    Raises:
        UsageError: There is no such configuration.
    """
    return tuple(
        find_configuration(name).with_steps(num_inference_steps)
        for name in dict.fromkeys([*always, *names])
    )
