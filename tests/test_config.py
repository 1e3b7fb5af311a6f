"""Settings: precedence, origins, presets, and what is refused in which words."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import pytest

from cogedit.config import (
    ResolvedSettings,
    Settings,
    check_settings,
    preset_for_model,
    preset_names,
    presets_folder,
    resolve_settings,
)
from cogedit.errors import ConfigError, UsageError
from cogedit.lab.configurations import UPSTREAM_EDIT
from cogedit.schema import plain_value, setting, settings_of
from cogedit.types import (
    EncodeSettings,
    ExportSettings,
    InvertSettings,
    LoadSettings,
    LoraFile,
    Loras,
    ReconstructSettings,
)

Resolve = Callable[..., ResolvedSettings]


@pytest.fixture
def resolve(tmp_path: Path) -> Resolve:
    """`resolve_settings` in an empty folder, with a cogedit.toml where the test gives one."""

    def call(
        flags: Mapping[str, object] | None = None,
        *,
        config: str | None = None,
        environ: Mapping[str, str] | None = None,
        toml: str | None = None,
    ) -> ResolvedSettings:
        if toml is not None:
            (tmp_path / "cogedit.toml").write_text(toml)
        return resolve_settings(flags or {}, config=config, environ=environ or {}, cwd=tmp_path)

    return call


def test_defaults(resolve: Resolve) -> None:
    resolved = resolve()
    assert resolved.settings == Settings()
    assert resolved.preset is None
    assert set(resolved.origins.values()) == {"default"}
    assert resolved.settings.reconstruct_with("a cat") == ReconstructSettings("a cat")


def test_precedence_and_origins(resolve: Resolve) -> None:
    key = "reconstruct.guidance_scale"
    variable = "COGEDIT_RECONSTRUCT_GUIDANCE_SCALE"
    toml = "config = 'upstream'\n[reconstruct]\nguidance_scale = 3.0\n"
    steps = [
        (resolve(), 5.0, "default"),
        (resolve(config="upstream"), 6.0, "preset upstream"),
        (resolve(toml=toml), 3.0, "cogedit.toml"),
        (resolve(toml=toml, environ={variable: "2.5"}), 2.5, f"environment variable {variable}"),
        (resolve({key: 2}, toml=toml, environ={variable: "2.5"}), 2.0, "flag"),
    ]
    for resolved, value, origin in steps:
        assert resolved.settings.reconstruct.guidance_scale == value
        assert resolved.origins[key] == origin
    assert steps[-1][0].settings.invert.inverse == "upstream"
    assert steps[-1][0].origins["invert.inverse"] == "preset upstream"


def test_flags_that_were_not_given(resolve: Resolve) -> None:
    resolved = resolve({"load.width": None}, environ={"COGEDIT_LOAD_WIDTH": "64"})
    assert resolved.settings.load.width == 64
    resolved = resolve(environ={"COGEDIT_LOAD_WIDTH": "", "COLUMNS": "80"})
    assert resolved.origins["load.width"] == "default"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("model", "a/b", "a/b"),
        ("revision", "main", "main"),
        ("dtype", "fp16", "fp16"),
        ("dtype", "auto", None),
        ("device", "cuda:1", "cuda:1"),
        ("workspace", "some where", Path("some where")),
        ("load.frame_sample_step", "2", 2),
        ("load.frame_sample_step", "auto", None),
        ("load.resize_mode", "pad", "pad"),
        ("encode.vae_tiling", "true", True),
        ("encode.vae_tiling", "0", False),
        ("invert.prompt", "auto", "auto"),
        ("reconstruct.injection_steps", "0.1:0.5", (0.1, 0.5)),
        ("reconstruct.injection_strength", "2", 2.0),
        ("reconstruct.injection_strength", "2:0", (2.0, 0.0)),
        ("reconstruct.injection_strength", "0.5:1.5", (0.5, 1.5)),
        ("reconstruct.injection_strength", "2:2.0", 2.0),
        ("reconstruct.injection_layers", "3:END", (3, None)),
        ("reconstruct.injection_layers", "3:7", (3, 7)),
        ("reconstruct.mask_dilation", "0", 0),
        ("reconstruct.auto_mask", "true", True),
        ("reconstruct.auto_mask_threshold", "0.5", 0.5),
        ("export.composite", "source", "source"),
        ("export.composite", "auto", None),
        ("export.feather", "4", 4),
        ("export.fps", "30000/1001", Fraction(30000, 1001)),
        ("export.fps", "23.976", Fraction(23976, 1000)),
        ("export.crf", "0", 0),
        ("export.crf", "auto", None),
        ("export.codec", "ffv1", "ffv1"),
        ("export.lossless", "true", True),
        ("export.size", "source", "source"),
        ("export.sound", "false", False),
    ],
)
def test_text_values(key: str, text: str, value: object, resolve: Resolve) -> None:
    variable = "COGEDIT_" + key.replace(".", "_").upper()
    for resolved in (resolve({key: text}), resolve(environ={variable: text})):
        found: object = resolved.settings
        for name in key.split("."):
            found = getattr(found, name)
        assert found == value
        assert type(found) is type(value)


def test_toml_values(resolve: Resolve) -> None:
    settings = resolve(
        toml="""
        model = "a/b"
        workspace = "here"
        [invert]
        guidance_scale = 2
        [reconstruct]
        injection_strength = [2, 0.0]
        injection_steps = [0, 0.5]
        injection_layers = [2, "END"]
        [export]
        fps = 25
        """
    ).settings
    assert settings.workspace == Path("here")
    assert settings.invert.guidance_scale == 2.0
    assert type(settings.invert.guidance_scale) is float
    assert settings.reconstruct.injection_strength == (2.0, 0.0)
    assert settings.reconstruct.injection_steps == (0.0, 0.5)
    assert settings.reconstruct.injection_layers == (2, None)
    assert settings.export.fps == 25


@pytest.mark.parametrize(
    ("toml", "hint"),
    [
        ("[load]\nwidht = 3", "`load.width`"),
        ("[laod]\nwidth = 3", "`load`"),
        ("guidance_scale = 3", "`invert.guidance_scale` or `reconstruct.guidance_scale`"),
        ("[reconstruct]\nprompt = 'x'", "--prompt PROMPT"),
        ("zzz = 3", "model, revision"),
        ("[reconstruct]\ndrift_correction = 0.0", "removed"),
        ("transformer.rows = 'shared'", "reconstruct.reference_rows"),
    ],
)
def test_an_unknown_key_is_refused_with_what_was_meant(
    toml: str, hint: str, resolve: Resolve
) -> None:
    with pytest.raises(ConfigError, match=r"unknown key `.*` in cogedit\.toml") as caught:
        resolve(toml=toml)
    assert caught.value.exit_code == 2
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("load", "3"),
        ("load.width", "'64'"),
        ("load.width", "64.0"),
        ("load.width", "true"),
        ("load.width", "0"),
        ("load.skip_frames_end", "-1"),
        ("load.resize_mode", "'zoom'"),
        ("encode.vae_tiling", "'true'"),
        ("encode.vae_tiling", "1"),
        ("invert.num_inference_steps", "1001"),
        ("invert.guidance_scale", "inf"),
        ("invert.guidance_scale", "-1"),
        ("invert.prompt", "3"),
        ("reconstruct.injection_strength", "-1"),
        ("reconstruct.injection_strength", "nan"),
        ("reconstruct.injection_strength", "'2'"),
        ("reconstruct.injection_strength", "[2.0]"),
        ("reconstruct.injection_strength", "[2.0, -1.0]"),
        ("reconstruct.injection_strength", "[nan, 0.0]"),
        ("reconstruct.injection_strength", "'2:0:1'"),
        ("reconstruct.injection_strength", "'2:END'"),
        ("reconstruct.injection_steps", "[0.5, 0.2]"),
        ("reconstruct.injection_steps", "[0.5]"),
        ("reconstruct.injection_steps", "'a:b'"),
        ("reconstruct.injection_steps", "'0.5:END'"),
        ("reconstruct.injection_layers", "'4:4'"),
        ("reconstruct.injection_layers", "[-1, 3]"),
        ("reconstruct.seed", "-1"),
        ("export.crf", "64"),
        ("export.fps", "0"),
        ("export.fps", "'1/0'"),
        ("export.fps", "'1e999999999'"),
        ("export.fps", "true"),
        ("dtype", "'bf17'"),
        ("device", "'gpu'"),
        ("device", "'cuda:1\\n'"),
        ("model", "''"),
        ("config", "3"),
        ("config", "'a.toml'"),
    ],
)
def test_a_value_is_refused_by_its_key(key: str, value: str, resolve: Resolve) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(toml=f"{key} = {value}")
    assert caught.value.message.startswith(f"`{key}` in cogedit.toml is ")
    assert "expected" in caught.value.message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("toml", ["\n[load]\nwidth = = 3", "[load]\nwidth = 1\nwidth = 2"])
def test_a_file_that_is_no_toml_is_refused(toml: str, resolve: Resolve) -> None:
    with pytest.raises(ConfigError, match=r"cogedit\.toml"):
        resolve(toml=toml)


def test_flags_and_variables_are_refused_by_the_same_rules(resolve: Resolve) -> None:
    with pytest.raises(UsageError) as caught:
        resolve({"invert.num_inference_steps": 0})
    # In Python there are no flags, and two settings have this one.
    found = "invert.num_inference_steps is 0, expected a whole number"
    assert caught.value.message.startswith(found)
    assert not isinstance(caught.value, ConfigError)
    variable = "COGEDIT_INVERT_NUM_INFERENCE_STEPS"
    with pytest.raises(ConfigError, match=rf"variable {variable} is many, expected a whole"):
        resolve(environ={variable: "many"})
    with pytest.raises(ConfigError, match=r"COGEDIT_LOAD_WIDHT") as misspelt:
        resolve(environ={"COGEDIT_LOAD_WIDHT": "3"})
    assert "`COGEDIT_LOAD_WIDTH`" in str(misspelt.value.hint)
    with pytest.raises(UsageError, match=r"load\.widht"):
        resolve({"load.widht": 3})


def test_a_losing_value_is_checked_all_the_same(resolve: Resolve) -> None:
    with pytest.raises(ConfigError):
        resolve({"load.width": 64}, toml="[load]\nwidth = -1")


@pytest.mark.parametrize(
    "settings",
    [
        LoadSettings(width=0),
        LoadSettings(frame_sample_step=0),
        InvertSettings(num_inference_steps=0),
        InvertSettings(guidance_scale=float("nan")),
        ReconstructSettings("x", injection_steps=(0.5, 0.1)),
        ReconstructSettings("x", injection_strength=(2.0, 101.0)),
        ReconstructSettings("x", injection_strength=(2.0, 1.0, 0.0)),
        ReconstructSettings("x", injection_layers=(3, 3)),
        ExportSettings(fps=Fraction(0)),
    ],
)
def test_records_made_in_python_pass_the_same_rules(settings: LoadSettings) -> None:
    with pytest.raises(UsageError, match=r" is .*, expected "):
        check_settings(settings)


def test_good_records_pass() -> None:
    assert check_settings(LoadSettings()) == LoadSettings()
    assert check_settings(EncodeSettings()) == EncodeSettings()
    assert check_settings(ExportSettings()) == ExportSettings()
    assert check_settings(InvertSettings()) == InvertSettings()
    assert check_settings(ReconstructSettings("x")) == ReconstructSettings("x")


# --- presets ----------------------------------------------------------------------------------


def test_shipped_presets(resolve: Resolve) -> None:
    models = ["cogvideox-1.5-5b", "cogvideox-1.5-5b-i2v", "cogvideox-2b", "cogvideox-5b"]
    models.append("cogvideox-5b-i2v")
    ours = ["faithful", "fast", "first-frame", "first-frame-recolor", "recolor", "upstream"]
    assert preset_names() == ["balanced", "bold", *models, *ours]
    assert (presets_folder() / "upstream.toml").is_file()
    expected = {
        "cogvideox-5b": ("zai-org/CogVideoX-5b", None, 720, 480, 49, "crop"),
        "cogvideox-2b": ("zai-org/CogVideoX-2b", None, 720, 480, 49, "crop"),
        "cogvideox-1.5-5b": ("zai-org/CogVideoX1.5-5B", None, 1360, 768, 81, "crop"),
        "cogvideox-5b-i2v": ("zai-org/CogVideoX-5b-I2V", None, 720, 480, 49, "crop"),
        "cogvideox-1.5-5b-i2v": ("zai-org/CogVideoX1.5-5B-I2V", None, 1360, 768, 81, "crop"),
    }
    for name, values in expected.items():
        settings = resolve(config=name).settings
        load = settings.load
        size = (load.width, load.height, load.max_num_frames, load.resize_mode)
        assert (settings.model, settings.dtype, *size) == values
        assert preset_for_model(settings.model) == name


def test_upstream_preset(resolve: Resolve) -> None:
    settings = resolve(config="upstream").settings
    assert settings.invert == InvertSettings(
        guidance_scale=6.0, num_inference_steps=50, inverse="upstream"
    )
    assert settings.reconstruct_with("x") == replace(UPSTREAM_EDIT, prompt="x")
    assert settings.load.resize_mode == "stretch"
    assert settings.model == "auto"


def test_presets_of_how_far_an_edit_goes(resolve: Resolve) -> None:
    faithful, balanced, bold, fast = (
        resolve(config=name).settings for name in ("faithful", "balanced", "bold", "fast")
    )
    for one in (faithful, balanced, bold):
        assert one.invert == InvertSettings()
        assert (one.model, one.load) == ("auto", LoadSettings())
        reconstruct = one.reconstruct_with("x")
        # One view of the source for all prompts: what makes many edits of a clip cheap.
        assert (reconstruct.reference_prompt, reconstruct.reference_rows) == ("inversion", "one")
    assert faithful.reconstruct.guidance_scale < bold.reconstruct.guidance_scale
    # How long the source is looked at is how far an edit does not go.
    ends = [one.reconstruct.injection_steps[1] for one in (faithful, balanced, bold)]
    assert ends == sorted(ends, reverse=True)
    assert balanced.reconstruct_with("x") == ReconstructSettings("x")
    # `fast` is `balanced` in fewer steps, and what goes with them.
    fewer = {"num_inference_steps": 12, "solver": "dpm++2m"}
    with_them = {
        name: getattr(fast.reconstruct, name)
        for name in (
            "guidance_steps",
            "injection_recentering",
            "injection_strength",
            "injection_steps",
        )
    }
    made = replace(balanced.reconstruct_with("x"), **fewer, **with_them)
    assert made == fast.reconstruct_with("x")
    assert fast.invert == InvertSettings(num_inference_steps=12)


@pytest.mark.parametrize(
    ("model", "preset"),
    [
        ("THUDM/CogVideoX-5b", "cogvideox-5b"),
        ("THUDM/CogVideoX1.5-5B", "cogvideox-1.5-5b"),
        ("/models/CogVideoX-2b/", "cogvideox-2b"),
        ("THUDM/CogVideoX-5b-I2V", "cogvideox-5b-i2v"),
        ("zai-org/CogVideoX-5b-Other", None),
        ("auto", None),
    ],
)
def test_preset_of_a_model(model: str, preset: str | None, resolve: Resolve) -> None:
    assert preset_for_model(model) == preset
    resolved = resolve({"model": model})
    assert resolved.preset == preset
    assert resolved.settings.model == model
    assert resolved.origins["model"] == "flag"
    if preset is not None:
        assert resolved.origins["load.width"] == f"preset {preset}"
    # The preset of the model lies below one that is named.
    named = resolve({"model": model}, config="upstream")
    assert named.preset == "upstream"
    assert named.origins["load.resize_mode"] == "preset upstream"
    assert named.origins["load.width"] == resolved.origins["load.width"]


def test_what_follows_from_the_artifact_lies_between_what_was_asked_and_the_models_preset(
    resolve: Resolve, tmp_path: Path
) -> None:
    inferred = {
        "artifact x": {"model": "zai-org/CogVideoX-5b", "dtype": "fp32", "load.width": 64},
        "model y": {"load.width": 96, "load.height": 128},
    }

    def settle(flags: dict[str, object]) -> ResolvedSettings:
        return resolve_settings(flags, environ={}, cwd=tmp_path, inferred=inferred)

    resolved = settle({"load.height": 32})
    assert resolved.origins["model"] == "artifact x"
    assert (resolved.settings.dtype, resolved.origins["dtype"]) == ("fp32", "artifact x")
    assert (resolved.settings.load.width, resolved.settings.load.height) == (64, 32)
    assert resolved.settings.load.max_num_frames == 49
    assert resolved.origins["load.max_num_frames"] == "preset cogvideox-5b"
    assert settle({"dtype": "fp16"}).settings.dtype == "fp16"


def test_config_argument_variable_and_key(resolve: Resolve, tmp_path: Path) -> None:
    assert resolve(environ={"COGEDIT_CONFIG": "upstream"}).preset == "upstream"
    both = resolve(config="cogvideox-2b", environ={"COGEDIT_CONFIG": "upstream"})
    assert both.preset == "cogvideox-2b"
    (tmp_path / "mine.toml").write_text("config = 'cogvideox-5b'\n[load]\nwidth = 64\n")
    mine = resolve(config="mine.toml", toml="[load]\nheight = 96\n")
    assert mine.preset == "cogvideox-5b"
    assert (mine.settings.load.width, mine.origins["load.width"]) == (64, "mine.toml")
    # A file that is named takes the place of cogedit.toml.
    assert (mine.settings.load.height, mine.origins["load.height"]) == (480, "preset cogvideox-5b")


def test_unknown_preset_and_missing_file(resolve: Resolve, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown preset 'upstraem'.*did you mean `upstream`"):
        resolve(config="upstraem")
    with pytest.raises(ConfigError, match=r"cannot read none.toml: No such file or directory"):
        resolve(config="none.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(ConfigError, match=r"cannot read folder.toml: Is a directory"):
        resolve(config="folder.toml")
    (tmp_path / "latin.toml").write_bytes(b"model = '\xff'")
    with pytest.raises(ConfigError, match=r"latin.toml is not UTF-8"):
        resolve(config="latin.toml")
    (tmp_path / "deep.toml").write_text("a = " + "[" * 100_000)
    with pytest.raises(ConfigError, match=r"deep.toml is not valid TOML"):
        resolve(config="deep.toml")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_a_shell_of_windows_redirects_is_read(
    resolve: Resolve, tmp_path: Path, encoding: str
) -> None:
    """`cogedit config show > cogedit.toml` in PowerShell 5.1 writes UTF-16."""
    text = "[load]\r\nheight = 480\r\n"
    (tmp_path / "cogedit.toml").write_bytes(text.encode(encoding))
    assert resolve().settings.load.height == 480


def test_a_path_of_windows_in_double_quotes_has_a_hint(resolve: Resolve, tmp_path: Path) -> None:
    (tmp_path / "cogedit.toml").write_text('workspace = "C:\\Users\\me"\n')
    with pytest.raises(ConfigError, match=r"cogedit.toml is not valid TOML") as caught:
        resolve()
    assert "write / in its place" in (caught.value.hint or "")


def test_an_installed_package_finds_its_own_presets(tmp_path: Path) -> None:
    # As a wheel unpacks it: presets inside the package, and somebody else's `configs` beside it.
    package = tmp_path / "cogedit"
    package.mkdir()
    source = presets_folder().parent / "cogedit"
    for name in ("errors.py", "places.py", "schema.py", "clip_times.py"):
        shutil.copy(source / name, package / name)
    for name in ("config", "types"):
        shutil.copytree(source / name, package / name)
    (package / "__init__.py").touch()
    shutil.copytree(presets_folder(), package / "configs")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "foreign.toml").write_text("")
    program = "from cogedit.config import *; print(presets_folder(), *preset_names(), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split("\n")[:-1] == [str(package / "configs"), *preset_names()]


@dataclass(frozen=True)
class WithList:
    loras: Loras = setting((), "Model", "Some files.", default_text="none")


@pytest.mark.parametrize(
    ("given", "files"),
    [
        ("a.safetensors", [("a.safetensors", 1.0)]),
        ("a.safetensors:0.8", [("a.safetensors", 0.8)]),
        (["a:-1e-1", "b b:2"], [("a", -0.1), ("b b", 2.0)]),
        ("a:0.5; b", [("a", 0.5), ("b", 1.0)]),
        (["a;b"], [("a;b", 1.0)]),
        ("C:\\loras\\x.safetensors", [("C:\\loras\\x.safetensors", 1.0)]),
        ("C:\\x.safetensors:0.5", [("C:\\x.safetensors", 0.5)]),
        ("a:nan", [("a:nan", 1.0)]),
        ("a:1:1", [("a:1", 1.0)]),
        ("none", []),
        ([], []),
    ],
)
def test_a_list_of_files_with_scales(given: object, files: list[tuple[str, float]]) -> None:
    [described] = settings_of(WithList)
    found = tuple(LoraFile(Path(name), scale) for name, scale in files)
    assert described.read(given, is_text=True) == found
    assert described.read(plain_value(found), is_text=False) == found
    assert plain_value(found) == [f"{name}:{scale}" for name, scale in files]


@pytest.mark.parametrize("given", ["", ":0.5", [""], [1.0], 3, {"a": 1}, "a;;b"])
def test_what_is_no_list_of_files(given: object) -> None:
    [described] = settings_of(WithList)
    with pytest.raises(ValueError, match="FILE:SCALE"):
        described.read(given, is_text=True)
