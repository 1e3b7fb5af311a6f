"""Reads frames by decord, as a program of its own: what hangs or crashes there, we can end.

It is run by its path and imports nothing of ours, so that it starts in a fraction of a second; it
needs no torch, which clashes with decord on some systems when both are in one process.

stdin: one JSON object with the path, width, height, num_frames and indices of `_Request`. stdout:
the frames as rgb24. Where decord fails, stderr has one JSON object in its last line and the status
is 1.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TypedDict


class _Request(TypedDict):
    path: str
    width: int
    height: int
    num_frames: int
    indices: list[int]


def main() -> None:
    """Answer one request."""
    request: _Request = json.load(sys.stdin)
    # decord or a library of its may print; frames go to a copy that nobody else knows.
    frames = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    index = 0
    try:
        video = decord.VideoReader(
            request["path"], decord.cpu(0), width=request["width"], height=request["height"]
        )
        if len(video) != request["num_frames"]:
            index = len(video)
            raise RuntimeError("decord counts otherwise")
        wanted = set(request["indices"])
        for index in range(request["indices"][-1] + 1):
            # Frames between the wanted ones are decoded too: decord's seeking is not exact.
            frame = video.next().asnumpy()
            if index in wanted:
                frames.write(frame.data)
        frames.close()
    except (decord.DECORDError, RuntimeError, StopIteration, IndexError) as error:
        # decord puts a C++ stack trace below its message.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        sys.stderr.write("\n" + json.dumps({"index": index, "reason": reason}) + "\n")
        sys.stderr.flush()
        os._exit(1)  # decord's threads may not end


if __name__ == "__main__":
    main()
