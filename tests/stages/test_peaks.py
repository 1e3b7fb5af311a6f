"""Host memory does not grow with the length of a clip beyond its latents."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WIDTH, HEIGHT = 320, 240
SHORT, LONG = 65, 193
"""Both have several pieces and windows; a first run of 9 frames loads the libraries."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="sets an option of glibc")
def test_memory_does_not_grow_with_length():
    script = Path(__file__).parents[1] / "peaks.py"
    command = [sys.executable, script, "9", str(SHORT), str(LONG), "--size", f"{WIDTH}x{HEIGHT}"]
    # As it comes, malloc keeps what was freed in pieces of its own, of which ever more are needed.
    returned_at_once = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [*map(str, command)], env=returned_at_once, capture_output=True, check=True
    )
    _, short, long = (json.loads(line) for line in done.stdout.splitlines())
    one_copy = (LONG - SHORT) * WIDTH * HEIGHT * 3 / 1e6  # of the added frames, in MB: 29
    assert long["report"] - short["report"] < 0.7 * one_copy
