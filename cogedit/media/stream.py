"""Clips frame by frame: a long one does not fit into memory."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, overload

import numpy as np
from numpy.typing import NDArray

from cogedit.errors import StorageError, VideoError

Frame = NDArray[np.uint8]
"""uint8 RGB, [H, W, 3]."""


@dataclass(frozen=True)
class FrameStream:
    """Frames, uint8 RGB [height, width, 3] each, that come one by one.

    Attributes:
        frames: The frames in turn. A generator gives them once, as they are computed; a sequence
            gives them as often as they are wanted.
        num_frames: How many there are.
    """

    frames: Iterable[Frame]
    num_frames: int
    height: int
    width: int

    def close(self) -> None:
        """End what computes the frames, though some were not taken."""
        if isinstance(self.frames, Generator):
            self.frames.close()


class FrameFile(Sequence[Frame]):
    """The frames of a stream in a file without a name, to be read more than once.

    The file is gone when this object is, or when its process ends, however it ends.

    Args:
        stream: Read to its end.
        folder: Where the file has room; another one is taken where none can be made there.

    Raises:
        StorageError: There is no room for the frames.
        VideoError: The stream ends early.
    """

    def __init__(self, stream: FrameStream, folder: Path) -> None:
        self.height, self.width = stream.height, stream.width
        self._num_frames = stream.num_frames
        self._file = _open_nameless(folder)
        weakref.finalize(self, self._file.close)
        count = 0
        for frame in stream.frames:
            self._append(frame, folder)
            count += 1
        if count != stream.num_frames:
            raise VideoError(f"{count} frames were decoded, expected {stream.num_frames}")

    def _append(self, frame: Frame, folder: Path) -> None:
        content = np.ascontiguousarray(frame).data.cast("B")
        try:
            while content:
                content = content[self._file.write(content) :]
        except OSError as error:
            raise StorageError(
                f"cannot keep decoded frames in {folder}: {error.strerror or error}",
                hint=f"they take {len(self) * self._frame_bytes / 1e9:.1f} GB for a while",
            ) from error

    @property
    def _frame_bytes(self) -> int:
        return self.height * self.width * 3

    @property
    def stream(self) -> FrameStream:
        """The frames once more."""
        return FrameStream(self, len(self), self.height, self.width)

    def __len__(self) -> int:
        return self._num_frames

    @overload
    def __getitem__(self, index: int) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> list[Frame]: ...
    def __getitem__(self, index: int | slice) -> Frame | list[Frame]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        frame = np.empty((self.height, self.width, 3), dtype=np.uint8)
        left = frame.data.cast("B")
        self._file.seek(number * self._frame_bytes)
        while left:
            left = left[self._file.readinto(left) :]  # type: ignore[attr-defined]
        return frame


def _open_nameless(folder: Path) -> IO[bytes]:
    with suppress(OSError):  # a folder from which is only read takes no file
        return tempfile.TemporaryFile(dir=folder, buffering=0)
    return tempfile.TemporaryFile(buffering=0)
