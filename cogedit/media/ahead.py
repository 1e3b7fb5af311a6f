"""What takes seconds of a large file, begun before it is asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cogedit.errors import CogeditError
from cogedit.media.files import Left, file_digest
from cogedit.media.packets import run_packet_list

LARGE = 64 * 2**20
"""Bytes: of a smaller file all this takes a tenth of a second."""


@contextmanager
def read_ahead(path: Path) -> Iterator[bool]:
    """Hash a large file and list its packets in threads, while the block does something else.

    Where the block asks for the digest or probes the file, it waits for the thread that is at it.
    Errors come there, as without this. Where it ends without asking, the hashing ends too.

    Yields:
        Whether the file is large.
    """
    try:
        is_large = path.is_file() and path.stat().st_size >= LARGE
    except (OSError, ValueError):  # the probe says why
        is_large = False
    if not is_large:
        yield False
        return
    left = threading.Event()

    def digest() -> None:
        with suppress(CogeditError, Left):
            file_digest(path, unless=left)

    def list_packets() -> None:
        with suppress(CogeditError):
            run_packet_list(path, "0:V:0")

    hashing = threading.Thread(target=digest)
    hashing.start()
    # It only waits for ffmpeg, which nothing has to wait for where the block has failed.
    threading.Thread(target=list_packets, daemon=True).start()
    try:
        yield True
    finally:
        left.set()
        hashing.join()
