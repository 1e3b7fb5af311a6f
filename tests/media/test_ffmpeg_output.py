"""What ffmpeg's messages say, in the words of its versions."""

import pytest

from cogedit.media.ffmpeg_output import parse_header

HEADER = """[info] Input #0, mov,mp4,m4a,3gp,3g2,mj2, from 'phone.mp4':
[info]   Duration: 00:00:01.00, start: 0.000000, bitrate: 100 kb/s
[info]   Stream #0:0[0x1](und): Video: h264 (High) (avc1 / 0x31637661), yuv420p(tv), 160x96, 30 fps
[info]       Side data:
[info]         {name}: rotation of -90.00 degrees
[info] Stream mapping:
[info]   Stream #0:0 -> #0:0 (h264 (native) -> rawvideo (native))
[info] Output #0, rawvideo, to 'pipe:':
"""


@pytest.mark.parametrize("name", ["Display Matrix", "displaymatrix"])
def test_a_display_matrix_has_two_names(name):
    found = parse_header(HEADER.format(name=name))
    assert found.has_display_matrix
    assert found.clockwise == 90.0
    assert (found.codec, found.pixel_format) == ("h264", "yuv420p")


def test_most_clips_have_none():
    found = parse_header(HEADER.format(name="CPB properties"))
    assert not found.has_display_matrix
    assert found.clockwise == 0.0
