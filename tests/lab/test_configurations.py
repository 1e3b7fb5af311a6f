"""Configurations of the quality benchmark."""

from dataclasses import replace

import pytest

from cogedit.errors import ConfigError, UsageError
from cogedit.lab.cases import EDIT_KINDS
from cogedit.lab.configurations import (
    BUILT_IN,
    Configuration,
    choose_configurations,
    find_configuration,
)
from cogedit.types import InvertSettings, ReconstructSettings


def test_default_is_what_the_stages_do_unasked():
    default = find_configuration("default")
    assert default.inversion.settings == InvertSettings()
    assert default.reconstruct == ReconstructSettings(prompt="")
    assert not default.inversion.under_caption


def test_upstream_is_the_upstream_preset(tmp_path):
    preset = tmp_path / "copy.toml"
    preset.write_text('config = "upstream"\n')
    from_preset = find_configuration(str(preset))
    assert from_preset.name == "copy"
    assert from_preset.inversion.settings.num_low_levels == 0
    assert replace(from_preset, name="upstream") == BUILT_IN["upstream"]


def test_controls_change_one_thing_of_the_balanced_preset():
    balanced = find_configuration("balanced@caption")
    off = [name for name in BUILT_IN if BUILT_IN[name].inversion == balanced.inversion]
    assert len(off) > 20
    for name in off:
        changed = vars(BUILT_IN[name].reconstruct).items() - vars(balanced.reconstruct).items()
        assert changed or BUILT_IN[name].exact_mask, name


def test_the_default_is_the_balanced_preset():
    default = find_configuration("default")
    assert replace(find_configuration("balanced"), name="default") == default


def test_a_row_may_know_the_source_s_caption():
    plain, told = find_configuration("fast"), find_configuration("fast@caption")
    assert (plain.name, told.name) == ("fast", "fast@caption")
    assert told.reconstruct == plain.reconstruct
    assert plain.inversion.prompts(["a red circle"]) == [""]
    assert told.inversion.prompts(["a red circle"]) == ["a red circle"]


def test_a_row_may_be_given_the_exact_mask():
    plain, masked = find_configuration("faithful"), find_configuration("faithful@caption@mask")
    assert masked.name == "faithful@caption@mask"
    assert masked.exact_mask
    assert masked.inversion.under_caption
    assert masked.reconstruct == plain.reconstruct


def test_a_row_may_be_for_some_kinds_of_edit():
    told = find_configuration("recolor@caption=color,same")
    assert told.kinds == ("color", "same")
    assert replace(told, kinds=EDIT_KINDS) == find_configuration("recolor@caption")
    with pytest.raises(UsageError, match="recolor=colour"):
        find_configuration("recolor=colour")


def test_other_numbers_of_steps_keep_the_proportions():
    fast = find_configuration("fast")
    assert fast.with_steps(25).inversion.settings.num_inference_steps == 6
    assert fast.with_steps(25).reconstruct.num_inference_steps == 6
    assert fast.with_steps(50) == fast
    assert fast.with_steps(1).reconstruct.num_inference_steps == 1


def test_a_toml_file_is_a_configuration(tmp_path, monkeypatch):
    monkeypatch.setenv("COGEDIT_RECONSTRUCT_GUIDANCE_SCALE", "9")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cogedit.toml").write_text("[reconstruct]\nseed = 5\n")
    (tmp_path / "mine.toml").write_text("[reconstruct]\nstart = 'random'\n")
    expected = ReconstructSettings(prompt="", start="random")
    assert find_configuration("mine.toml") == Configuration("mine", reconstruct=expected)


def test_a_broken_file_is_refused(tmp_path):
    file = tmp_path / "broken.toml"
    file.write_text("[reconstruct]\nguidance_scale = -1\n")
    with pytest.raises(ConfigError):
        find_configuration(str(file))


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="best") as raised:
        find_configuration("best")
    assert "half-strength" in str(raised.value)


def test_upstream_and_default_are_in_every_run():
    chosen = choose_configurations(["shared-half", "default"], num_inference_steps=7)
    assert [one.name for one in chosen] == ["upstream", "default", "shared-half"]
    assert [one.inversion.settings.num_inference_steps for one in chosen] == [7, 3, 7]
