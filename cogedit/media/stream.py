"""Clips frame by frame: a long one does not fit into memory."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from cogedit.disk import NamelessFile
from cogedit.errors import StorageError, VideoError
from cogedit.wording import count_of

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
        count = 0
        with _enough_space(folder, len(self) * self._frame_bytes):
            self._file = NamelessFile(folder)
        for frame in stream.frames:
            count += 1
            with _enough_space(folder, len(self) * self._frame_bytes):
                self._file.append(np.ascontiguousarray(frame).data.cast("B"))
        if count != stream.num_frames:
            raise VideoError(f"decoded {count_of(count, 'frame')}, expected {stream.num_frames}")

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
        self._file.read_into(frame.data.cast("B"), number * self._frame_bytes)
        return frame


@contextmanager
def _enough_space(folder: Path, num_bytes: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot keep decoded frames in {folder}: {error.strerror or error}",
            hint=f"free some space: they take {num_bytes / 1e9:.1f} GB for a while",
        ) from error
