"""Reads frames by decord, as a program of its own: what hangs or crashes can then be killed.

It is run by its path and imports nothing of cogedit, so that it starts in a fraction of a second.
It needs no torch, which clashes with decord on some systems when both are in one process.

stdin: one JSON object with path, width, height, num_frames and indices. stdout: the frames as
rgb24. Where decord fails, the last line of stderr is one JSON object with the reason, and the
status is 1. Past the end of a file decord repeats the last frame: where the last two are the same,
that line says so, and the status is 0.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    """Answer one request."""
    request = json.load(sys.stdin)
    # decord or its libraries may print to stdout: frames go to a copy of it, prints to stderr.
    frames = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    try:
        video = decord.VideoReader(
            request["path"], decord.cpu(0), width=request["width"], height=request["height"]
        )
        if len(video) != request["num_frames"]:
            raise RuntimeError(f"decord counts {len(video)} frames")
        wanted, frame = set(request["indices"]), None
        for index in range(request["indices"][-1] + 1):
            # Frames between the wanted ones are decoded too: decord's seeking is not exact.
            before, frame = frame, video.next().asnumpy()
            if index in wanted:
                frames.write(frame.data)
        if before is not None and index == request["num_frames"] - 1 and (frame == before).all():
            _report("its last two frames are the same")
        frames.close()
    except (decord.DECORDError, RuntimeError, StopIteration, IndexError) as error:
        # decord puts a C++ stack trace below its message.
        _report((str(error).strip().splitlines() or [type(error).__name__])[0][:200])
        os._exit(1)
    os._exit(0)  # decord's threads may not end


def _report(reason: str) -> None:
    sys.stderr.write("\n" + json.dumps({"reason": reason}) + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
