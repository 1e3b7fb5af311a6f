"""Edits of held-out clips, with their right answers and masks."""

from dataclasses import asdict

import numpy as np
import pytest

from cogedit.errors import UsageError
from cogedit.lab import world
from cogedit.lab.cases import EDIT_KINDS, change_mask, edits_background, make_case


@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_the_right_answer_differs_in_what_the_kind_names_and_nothing_else(kind):
    for seed in range(50):
        case = make_case(seed, kind)
        source, right = asdict(case.source), asdict(case.right)
        differing = {name for name in source if source[name] != right[name]}
        assert differing == (set() if kind == "same" else {kind})
        assert case == make_case(seed, kind)
        assert case.prompt == world.caption(case.right)


def test_clips_are_held_out_and_the_same_for_every_kind():
    for seed in range(5):
        sources = {make_case(seed, kind).source for kind in EDIT_KINDS}
        assert sources == {world.sample_spec(seed, "held_out")}


def test_a_longer_clip_is_edited_under_the_same_prompts():
    for kind in EDIT_KINDS:
        short, long = make_case(4, kind), make_case(4, kind, num_frames=17)
        assert (long.source_prompt, long.prompt) == (short.source_prompt, short.prompt)
        assert long.source == world.sample_spec(4, "held_out", num_frames=17)
        assert change_mask(long).shape == (17, world.HEIGHT, world.WIDTH)


def test_targets_vary():
    assert len({make_case(seed, "color").right.color for seed in range(60)}) == len(world.COLORS)


def test_an_unknown_kind_is_refused():
    with pytest.raises(UsageError, match="size"):
        make_case(0, "size")


@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_the_exact_mask_is_all_that_the_right_answer_changes(kind):
    for seed in range(20):
        case = make_case(seed, kind)
        mask = change_mask(case)
        assert mask.dtype == np.uint8
        assert mask.shape == (world.NUM_FRAMES, world.HEIGHT, world.WIDTH)
        changed = (world.render(case.source) != world.render(case.right)).any(axis=-1)
        assert not changed[mask == 0].any()
        inside = world.render_mask(case.source) == 1
        assert mask[inside].all() == (not edits_background(kind))
        if edits_background(kind):
            assert not mask[inside].any()
