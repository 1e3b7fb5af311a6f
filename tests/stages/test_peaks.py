"""Host memory does not grow with the length of a clip beyond its latents."""

import tracemalloc

from accounting import LiveBytes
from peaks import run_all

WIDTH, HEIGHT = 96, 64
SHORT, LONG = 17, 49
"""Both have several pieces and windows; a first run of 9 frames loads the libraries."""


def peaks_of(folder, num_frames):
    """The most bytes at once in arrays and objects of Python, and those in tensors, by stage."""
    tracemalloc.start()
    try:
        with LiveBytes() as tensors:

            def measure():
                found = tracemalloc.get_traced_memory()[1], tensors.peak
                tracemalloc.reset_peak()
                tensors.peak = tensors.now
                return found

            return run_all(folder, num_frames, WIDTH, HEIGHT, measure=measure)
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_length(tmp_path):
    run_all(tmp_path, 9, WIDTH, HEIGHT)
    short, long = (peaks_of(tmp_path, num_frames) for num_frames in (SHORT, LONG))
    one_copy = (LONG - SHORT) * WIDTH * HEIGHT * 3  # of the added frames
    for stage, peaks in long.items():
        for before, after in zip(short[stage], peaks, strict=True):
            assert after - before < 0.5 * one_copy, stage
