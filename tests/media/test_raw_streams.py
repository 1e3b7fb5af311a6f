"""Streams without a container, whose frames carry no times; and containers of broadcasting."""

from fractions import Fraction

import numpy as np
import pytest
from videos import make_counter, read_counter

from cogedit.media.clip import plan_resize
from cogedit.media.probe import identify, probe_facts
from cogedit.media.reader import read_clip
from cogedit.types import LoadSettings

X264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-bf", "2", "-g", "6")
X265 = ("-c:v", "libx265", "-pix_fmt", "yuv420p", "-x265-params", "log-level=error")
MPEG2 = ("-c:v", "mpeg2video", "-pix_fmt", "yuv420p", "-b:v", "2M")


def numbers_in(path, facts):
    resize = plan_resize(facts.width, facts.height, settings=LoadSettings(width=64, height=48))
    frames = read_clip(path, facts, indices=range(facts.num_frames), resize=resize)
    return read_counter(np.stack(list(frames)))


@pytest.mark.parametrize(
    ("name", "fps", "options"),
    [
        ("a.h264", "30000/1001", X264),
        ("a.264", "25", X264),
        ("a.hevc", "24000/1001", X265),
        ("a.h265", "50", (*X265, "-f", "hevc")),
    ],
)
def test_a_raw_stream_is_read_at_its_rate_or_the_one_that_is_given(tmp_path, name, fps, options):
    path = make_counter(tmp_path / name, num_frames=13, fps=fps, options=options)
    facts = probe_facts(path)
    assert (facts.num_frames, facts.fps, facts.reader) == (13, Fraction(fps), "ffmpeg")
    assert [note for note in facts.notes if "--fps" in note]
    assert numbers_in(path, facts) == [*range(13)]
    given = probe_facts(path, fps=Fraction(12))
    assert (given.num_frames, given.fps) == (13, 12)
    assert not given.notes
    assert identify(path, given).is_untimed


@pytest.mark.parametrize(
    ("name", "fps", "options"),
    [
        ("a.mxf", "30000/1001", MPEG2),
        ("a.mxf", "25", MPEG2),
        ("a.nut", "24", ("-c:v", "ffv1", "-pix_fmt", "yuv420p")),
        ("a.nut", "60", X264),
    ],
)
def test_mxf_and_nut_are_read(tmp_path, name, fps, options):
    path = make_counter(tmp_path / name, num_frames=13, fps=fps, options=options)
    facts = probe_facts(path, fps=Fraction(12))
    assert (facts.num_frames, facts.fps) == (13, Fraction(fps))
    assert numbers_in(path, facts) == [*range(13)]
    assert not identify(path, facts).is_untimed
