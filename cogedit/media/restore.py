"""Frames of a clip put back over the frames that they were taken from: the resize undone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import repeat

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cogedit.media.clip import ResizePlan
from cogedit.media.edges import Change
from cogedit.media.reader import Frames, scale_frame

Weights = NDArray[np.float32]


def needs_own_frames(resize: ResizePlan) -> bool:
    """Whether the clip lacks a part of its source's image: what a crop removed."""
    box = resize.box
    cut = (box.scaled_width, box.scaled_height) != (resize.width, resize.height)
    return box.mode == "crop" and cut


def kept_window(resize: ResizePlan) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the source's whole pixels that the clip shows."""
    box = resize.box
    if not needs_own_frames(resize):
        return 0, 0, resize.source_width, resize.source_height
    left, right = _whole_pixels(box.left, resize.width, box.scaled_width, size=resize.source_width)
    top, bottom = _whole_pixels(
        box.top, resize.height, box.scaled_height, size=resize.source_height
    )
    return left, top, right, bottom


def _whole_pixels(start: int, length: int, scaled: int, *, size: int) -> tuple[int, int]:
    return -(-start * size // scaled), min(size, (start + length) * size // scaled)


def restore_frames(
    frames: Iterable[Frames | Change],
    resize: ResizePlan,
    *,
    own: Iterable[Frames] | None = None,
    weights: Iterable[Weights] | None = None,
) -> Iterator[Frames]:
    """Scale frames of a clip back to the source's size with Lanczos, crop or bars undone.

    Args:
        frames: uint8 RGB of the clip, [height, width, 3], or changes, which are applied to `own`
            and keep its detail.
        resize: How the source's frames became the clip's.
        own: The source's frames that belong to them, [source_height, source_width, 3]; every pixel
            that a crop removed, or that `weights` gives to the source, is theirs to the bit.
        weights: How much of each pixel of the clip is shown, 0 to 1, [height, width]; None shows
            all of it.

    Yields:
        uint8 RGB, [source_height, source_width, 3].

    Raises:
        ValueError: `own` is needed and not given.
    """
    if own is None and (weights is not None or needs_own_frames(resize)):
        raise ValueError("the source's own frames are needed")
    left, top, right, bottom = kept_window(resize)
    below = repeat(None) if own is None else own
    shares = repeat(None) if weights is None else weights
    for frame, source, share in zip(frames, below, shares, strict=False):
        restored = _restored(frame, resize, source)
        if source is None:
            yield restored
            continue
        inside = restored[top:bottom, left:right]
        result = source.copy()
        if share is not None:
            alpha = _enlarge_weights(share, resize)[top:bottom, left:right, None]
            under = source[top:bottom, left:right].astype(np.float32)
            inside = np.rint(under + alpha * (inside - under)).astype(np.uint8)
        result[top:bottom, left:right] = inside
        yield result


def _restored(frame: Frames | Change, resize: ResizePlan, source: Frames | None) -> Frames:
    """Scale to the source's size, or apply a change to the source's frame.

    What a crop removed is the source's, scaled down and up.
    """
    box = resize.box
    if isinstance(frame, Change):
        if source is None:
            raise ValueError("the source's own frames are needed")
        if box.mode == "pad":
            frame = frame.within(*image_window(resize))
        elif needs_own_frames(resize):
            frame = frame.beyond(*_removed(resize))
        return frame.on(source)
    if box.mode == "pad":
        frame = frame[image_window(resize)]
    elif source is not None and needs_own_frames(resize):
        # The filter reaches over the edge of the crop: let it find the image there.
        canvas = scale_frame(source, box.scaled_width, height=box.scaled_height).copy()
        canvas[box.top : box.top + resize.height, box.left : box.left + resize.width] = frame
        frame = canvas
    return lanczos(frame, resize.source_width, height=resize.source_height)


def _enlarge_weights(weights: Weights, resize: ResizePlan) -> Weights:
    """Scale [height, width] as the frames; bilinear, so that it neither rings nor reaches far.

    What a crop removed is 0.
    """
    if resize.box.mode == "pad":
        weights = weights[image_window(resize)]
    elif needs_own_frames(resize):
        left, right, top, bottom = _removed(resize)
        weights = np.pad(weights, ((top, bottom), (left, right)))
    size = (resize.source_width, resize.source_height)
    plane = Image.fromarray(np.ascontiguousarray(weights))
    return np.asarray(plane.resize(size, Image.Resampling.BILINEAR), dtype=np.float32)


def _removed(resize: ResizePlan) -> tuple[int, int, int, int]:
    """How many columns on the left and the right, and rows above and below, a crop removed."""
    box = resize.box
    right = box.scaled_width - box.left - resize.width
    return box.left, right, box.top, box.scaled_height - box.top - resize.height


def image_window(resize: ResizePlan) -> tuple[slice, slice]:
    """Rows and columns of a clip's frame that are its source's image, and no bars."""
    box = resize.box
    if box.mode != "pad":
        return slice(None), slice(None)
    rows = slice(box.top, box.top + box.scaled_height)
    return rows, slice(box.left, box.left + box.scaled_width)


def lanczos(frame: Frames, width: int, *, height: int) -> Frames:
    """Scale a frame [H, W, 3] uint8 with Lanczos; one that keeps its size keeps its bytes."""
    if frame.shape[:2] == (height, width):
        return frame
    scaled = Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS)
    result: Frames = np.asarray(scaled, dtype=np.uint8)
    return result
