"""Which frames ffmpeg is told to let through."""

import random

import pytest

from cogedit.media.ffmpeg import run_ffmpeg
from cogedit.media.filters import passed_by_filters, picture_filters
from cogedit.media.probe import probe_facts

UNEVEN = [sorted(random.Random(seed).sample(range(60), 5 + 5 * seed)) for seed in range(10)]
UNEVEN += [[i * 60 // 8 for i in range(8)], [3 + i * 30 // 8 for i in range(15)], [4, 4 + 7]]
UNEVEN += [[0, 1, 2, 9, 20, 22, 24, 26, 28, 30, 31, 59], [7, 9], [3, 4, 8], [58]]


def chosen_by_ffmpeg(expression, num_frames):
    """The numbers that ffmpeg lets through, of black pictures whose count is their number."""
    source = f"color=size=16x16:rate=1:duration={num_frames}"
    shown = run_ffmpeg(
        ["-f", "lavfi", "-i", source, "-vf", f"{expression},showinfo", "-f", "null", "-"],
        timeout=600,
    )
    assert shown.returncode == 0, shown.stderr
    lines = [line for line in shown.stderr.splitlines() if "pts_time:" in line]
    return [int(line.partition("pts_time:")[2].split()[0]) for line in lines]


@pytest.mark.parametrize("indices", UNEVEN, ids=len)
def test_ffmpeg_lets_through_what_was_chosen(clips, indices):
    [select] = picture_filters(probe_facts(clips / "plain.mp4"), passed_by_filters(indices))
    assert chosen_by_ffmpeg(select, 60) == indices


@pytest.mark.parametrize(
    "indices",
    [
        [index for index in range(9000) if index % 100],
        [index * 60 // 8 for index in range(4800)],
        [index * 30 // 8 for index in range(4800)],
        [index * 2997 // 800 for index in range(4800)],
        [index * 25 // 8 for index in range(5, 4800)],
    ],
    ids=["some are left out", "60 to 8", "30 to 8", "29.97 to 8", "25 to 8"],
)
def test_thousands_of_frames_fit_into_a_command_of_windows(clips, indices):
    """32,767 characters are all there are."""
    [select] = picture_filters(probe_facts(clips / "plain.mp4"), passed_by_filters(indices))
    assert len(select) < 20_000


def test_what_is_too_uneven_for_a_command_passes_whole(clips):
    """It is sorted out where it is read."""
    uneven = sorted(random.Random(1).sample(range(5, 60_000), 20_000))
    passed = passed_by_filters(uneven)
    assert passed.indices == range(uneven[0], uneven[-1] + 1)
    [select] = picture_filters(probe_facts(clips / "plain.mp4"), passed)
    assert len(select) < 100
    for short in (uneven[:1000], [index * 60 // 8 for index in range(20_000)]):
        assert passed_by_filters(short).indices == short
