"""Settings that are made and changed in Python, and calls that are given something else."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from videos import make_video

import cogedit
from cogedit.config import Settings, resolve_settings
from cogedit.errors import ModelError, UsageError
from cogedit.types import (
    ExportSettings,
    InvertSettings,
    LoadSettings,
    LoraFile,
    ReconstructSettings,
)

FOLDER = Path(__file__).parent
"""One without a `cogedit.toml`."""


def resolve(flags: Mapping[str, object]) -> Settings:
    """The settings that some flags give, and nothing else."""
    return resolve_settings(flags, environ={}, cwd=FOLDER).settings


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"device": "gpu"}, "device"),
        ({"model": None}, "model"),
        ({"dtype": "float32"}, "dtype"),
        ({"export": ExportSettings(codec="mpeg9")}, "export.codec"),
        ({"invert": InvertSettings(num_inference_steps=0)}, "invert.num_inference_steps"),
        ({"load": LoadSettings(background="nocolor")}, "load.background"),
        ({"load": InvertSettings()}, "load"),
    ],
)
def test_settings_made_in_python_are_checked_when_they_are_made(
    changed: dict[str, Any], key: str
) -> None:
    with pytest.raises(UsageError, match=rf"^{re.escape(key)} is .*, expected "):
        replace(Settings(), **changed)


def test_settings_made_in_python_have_what_a_file_would_give() -> None:
    """Lists, text and NumPy's numbers, as a notebook has them; a record has one way for each."""
    settings = replace(
        Settings(),
        workspace="here",
        export=ExportSettings(fps=12.5),
        reconstruct=ReconstructSettings(
            "",
            guidance_scale=np.float32(3),
            seed=np.int64(7),
            guidance_steps=[0, np.float64(0.5)],
            injection_strength=np.array([2, 0]),
        ),
    )
    expected = resolve(
        {
            "workspace": "here",
            "export.fps": "12.5",
            "reconstruct.guidance_scale": "3",
            "reconstruct.seed": "7",
            "reconstruct.guidance_steps": "0:0.5",
            "reconstruct.injection_strength": "2:0",
        }
    )
    assert repr(settings) == repr(expected)


def test_text_and_numbers_of_numpy_are_recorded_as_python_s() -> None:
    inversion = InvertSettings(prompt=np.str_("a bear"), num_inference_steps=np.int64(5))
    made = replace(Settings(), invert=inversion).invert
    assert (type(made.prompt), type(made.num_inference_steps)) == (str, int)


def test_loras_made_in_python_are_checked() -> None:
    [lora] = replace(Settings(), lora=(LoraFile("a.safetensors", 1),)).lora  # type: ignore[arg-type]
    assert repr(lora) == repr(LoraFile(Path("a.safetensors"), 1.0))
    for path, scale in ((None, 1.0), ("a.safetensors", "much"), ("a.safetensors", float("nan"))):
        wrong: Any = LoraFile(path, scale)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=r"^lora is "):
            replace(Settings(), lora=(wrong,))


@pytest.mark.parametrize("value", [np.int64(5), np.array(5), 5])
def test_numbers_of_numpy_are_numbers(value: object) -> None:
    assert resolve({"invert.num_inference_steps": value}).invert.num_inference_steps == 5


def test_a_flag_in_place_of_a_key_is_recognised() -> None:
    with pytest.raises(UsageError) as caught:
        resolve({"--guidance-scale": 3})
    assert caught.value.hint is not None
    assert "`reconstruct.guidance_scale`" in caught.value.hint


CALLS: Mapping[str, Callable[[Any, Any], object]] = {
    "load": cogedit.load,
    "encode": cogedit.encode,
    "invert": cogedit.invert,
    "check_inversion": cogedit.check_inversion,
    "reconstruct": lambda source, settings: cogedit.reconstruct(source, "a cat", settings),
    "edit": lambda source, settings: cogedit.edit(source, "a cat", settings),
    "export": cogedit.export,
    "save_frame": lambda source, settings: cogedit.save_frame(source, settings, output="a.png"),
    "estimate": cogedit.estimate,
    "sweep": lambda source, settings: cogedit.sweep(
        source, "a cat", settings, vary="injection_strength=0,1"
    ),
    "compare": lambda source, settings: cogedit.compare([source, source], settings, output="a.mp4"),
    "probe_layers": lambda source, settings: cogedit.probe_layers(source, "a cat", settings),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_is_no_path_and_what_are_no_settings_is_said(
    call: Callable[[Any, Any], object], here: Path
) -> None:
    settings = resolve({"model": "shapes"})
    frames = np.zeros((9, 64, 64, 3), np.uint8)
    with pytest.raises(UsageError, match="the source is a ndarray, expected the path of a file"):
        call(frames, settings)
    for wrong, found in (({"model": "shapes"}, "dict"), (None, "NoneType")):
        with pytest.raises(UsageError, match=rf"settings is a {found}, .*settings_for\(source"):
            call("clip.mp4", wrong)
    with pytest.raises(UsageError, match=r"ResolvedSettings, .*pass its `\.settings` on"):
        call("clip.mp4", cogedit.settings_for(None, environ={}, cwd=here))


def test_what_a_call_returned_has_the_path(here: Path) -> None:
    settings = resolve({"model": "shapes"})
    loaded = cogedit.load(make_video(here / "clip.mp4"), settings)
    with pytest.raises(UsageError, match=r"is a Written, .*pass its `\.path` on"):
        cogedit.export(loaded, settings)


def test_masks_and_first_frames_are_files(here: Path) -> None:
    video, settings = make_video(here / "clip.mp4"), resolve({"model": "shapes"})
    for name in ("mask", "first_frame", "output"):
        given = {"output": "out.mp4", name: np.zeros((64, 64), np.uint8)}
        with pytest.raises(UsageError, match=f"the {name.replace('_', ' ')} is a ndarray"):
            cogedit.edit(video, "a cat", settings, **given)
        with pytest.raises(UsageError, match=f"the {name.replace('_', ' ')} is a ndarray"):
            cogedit.reconstruct(video, "a cat", settings, **given)


def test_a_comparison_says_what_is_wrong(here: Path) -> None:
    settings, video = resolve({"model": "shapes"}), make_video(here / "clip.mp4")
    with pytest.raises(UsageError, match="takes two or more clips; found 1"):
        cogedit.compare(str(video), settings, output="a.mp4")
    with pytest.raises(UsageError, match="layout is 'grid', expected one of row, column, wipe"):
        cogedit.compare([video, video], settings, output="a.mp4", layout="grid")
    assert not (here / "a.mp4").exists()


def test_a_grid_takes_the_keys_of_settings() -> None:
    from cogedit.tools.grid import parse_grid

    expected = parse_grid("start-step=0,1")
    for name in ("start_step", "reconstruct.start_step", "--start-step"):
        assert parse_grid(f"{name}=0,1") == expected


def notes_of(call: Callable[[], object]) -> tuple[str, list[str]]:
    """What an error says, and what a traceback shows below it."""
    with pytest.raises(UsageError) as caught:
        call()
    return str(caught.value), getattr(caught.value, "__notes__", [])


def test_options_in_an_error_are_named_for_python(here: Path) -> None:
    """The sentence stays that of the command line."""
    settings, video = resolve({"model": "shapes"}), make_video(here / "clip.mp4")
    picture = cogedit.save_frame(video, settings, output=here / "first.png")
    said, notes = notes_of(lambda: cogedit.save_frame(video, settings, output=picture))
    assert said.endswith("exists (choose another -o, or replace it with --force)")
    assert notes == ["In Python: -o is `output`, --force is `run=Run(force=True)`"]
    said, notes = notes_of(
        lambda: cogedit.encode(video, resolve({"model": "shapes", "encode.vae_span": 10}))
    )
    assert said.startswith("--vae-span is 10")
    assert notes == ["In Python: --vae-span is the setting encode.vae_span"]


def test_an_error_without_options_has_no_note_and_travels_with_its_own() -> None:
    assert not hasattr(UsageError("nothing - of a-b --this-kind", hint="-o-o"), "__notes__")
    error = pickle.loads(pickle.dumps(UsageError("it exists", hint="choose another -o")))
    assert error.hint == "choose another -o"
    assert error.__notes__ == ["In Python: -o is `output`"]


def test_options_that_several_settings_share_name_them_all() -> None:
    [note] = UsageError("--num-inference-steps is 0").__notes__
    assert "invert.num_inference_steps or reconstruct.num_inference_steps" in note


def test_settings_without_a_model_say_who_chooses_one(here: Path) -> None:
    with pytest.raises(ModelError, match=r"model is 'auto'.*settings_for\(source, flags\)"):
        cogedit.encode(make_video(here / "clip.mp4"), Settings())
