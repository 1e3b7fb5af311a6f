"""What the published models were trained on, and what a clip of another size or length is told.

The authors' model cards name the sizes. What other sizes give is told in the CogVideo repository's
issues 499, 572 and 619: blurred clips, stripes, a part of the scene.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache

from cogedit.config import Settings, preset_for_model, read_preset
from cogedit.errors import ModelError, StorageError
from cogedit.media.clip import ResizePlan, find_span, plan_clip
from cogedit.media.timing import Timing
from cogedit.sources import SourceVideo
from cogedit.stages.model import checkpoint_for
from cogedit.types import LoadSettings
from cogedit.wording import count_of

_SIDES = {"cogvideox-1.5-5b-i2v": (768, 1360)}
"""By preset, the shorter side and the longest longer one of models of many sizes: only this one."""

_PORTRAIT = "zai-org/CogVideoX1.5-5B-I2V takes portrait clips (768x1360)"


@dataclass(frozen=True)
class Trained:
    """The clips that a published model was trained on.

    Attributes:
        model: Its name, without the owner's.
        width: Of its clips in pixels, or of the usual ones; so is `height`.
        num_frames: Of the usual ones.
        sides: Where it takes many sizes, the shorter side, and the longest longer one.
    """

    model: str
    width: int
    height: int
    num_frames: int
    sides: tuple[int, int] | None

    def takes(self, width: int, height: int) -> bool:
        """Whether clips of a size were among those that it was trained on."""
        if self.sides is None:
            return (width, height) == (self.width, self.height)
        shorter, longest = self.sides
        return min(width, height) == shorter and max(width, height) <= longest

    def size_note(self, source: SourceVideo, wanted: LoadSettings) -> str | None:
        """Say what a size that it was not trained at gives; None of one that it was."""
        if self.takes(wanted.width, wanted.height):
            return None
        if self.sides is not None:
            return (
                f"{self.model} was trained at a shorter side of {self.sides[0]} and a longer one "
                f"of up to {self.sides[1]} pixels, and other sizes give blurred or broken clips: "
                f"{self._size_like(source)} is nearest to this video"
            )
        note = (
            f"{self.model} was trained at {self.width}x{self.height} alone, and other sizes give "
            "blurred or broken clips: leave --width and --height out"
        )
        if wanted.resize_mode != "pad":
            note += "; --resize-mode pad keeps the whole image"
        return note + (f"; {_PORTRAIT}" if source.height > source.width else "")

    def other_size(self, source: SourceVideo, wanted: LoadSettings) -> str | None:
        """Name the flags of a size of the video's own shape; None if there is none but `wanted`."""
        if self.sides is None:
            return None
        flags = self._size_like(source)
        return None if flags == _flags(wanted.width, wanted.height) else flags

    def _size_like(self, source: SourceVideo) -> str:
        shorter, longest = self.sides or (0, 0)
        shape = Fraction(max(source.width, source.height), min(source.width, source.height))
        longer = min(longest, round(shorter * shape / 16) * 16)
        is_portrait = source.height > source.width
        return _flags(shorter, longer) if is_portrait else _flags(longer, shorter)


def trained_on(settings: Settings) -> Trained | None:
    """Return what the model of a run was trained on; None of one that nothing is known of.

    A fine-tune may have been trained on anything, as may a transformer in a file of its own, unless
    it has learned positions.
    """
    has_own = settings.transformer_file is not None
    preset = None if has_own else preset_for_model(settings.model)
    if preset is None:
        try:
            checkpoint = checkpoint_for(settings, download=False)
        except (ModelError, StorageError):
            return None
        geometry = checkpoint.geometry
        if geometry.has_fixed_size:
            width, height = geometry.width, geometry.height
            return Trained(checkpoint.id, width, height, geometry.num_frames, None)
        # That of a folder of the Hub's cache.
        preset = None if has_own else preset_for_model(checkpoint.id)
    return None if preset is None else _of_preset(preset)


@cache
def _of_preset(preset: str) -> Trained:
    values = read_preset(preset)
    keys = ("load.width", "load.height", "load.max_num_frames")
    width, height, num_frames = (int(str(values[key])) for key in keys)
    model = str(values["model"]).rpartition("/")[2]
    return Trained(model, width, height, num_frames, _SIDES.get(preset))


def _flags(width: int, height: int) -> str:
    return f"--width {width} --height {height}"


def longer_ways(
    count: int, source: SourceVideo, wanted: LoadSettings, *, timing: Timing
) -> Sequence[str]:
    """Name the flags under which a video gives a clip of so many frames, what they take first.

    Args:
        count: Frames that are wanted, 8n + 1.
        source: The video, read at its own rate.
        wanted: What gave fewer.
        timing: When the frames of the video are shown.

    Returns:
        One phrase each, that which covers most of the video first; nothing if none gives as many.
    """
    without = [
        flag
        for flag, is_given in (
            ("--max-num-frames", wanted.max_num_frames != count),
            ("--frame-sample-step", wanted.frame_sample_step is not None),
        )
        if is_given
    ]
    also = f" without {' and '.join(without)}" if without else ""
    ways: dict[tuple[int, ...], tuple[Fraction, str]] = {}
    for rate in ("source", "spread"):
        other = replace(wanted, frame_rate=rate, frame_sample_step=None, max_num_frames=count)
        plan = plan_clip(source, other, timing=timing)
        if len(plan.indices) == count:
            seconds = (count - plan.num_extra) / plan.fps
            phrase = f"--frame-rate {rate}{also} takes {count} frames, {float(seconds):.1f} s of it"
            ways.setdefault(plan.indices, (seconds, phrase))
    return [phrase for _, phrase in sorted(ways.values(), reverse=True)]


def length_note(
    trained: Trained,
    num_frames: int,
    source: SourceVideo,
    wanted: LoadSettings,
    *,
    timing: Timing,
) -> str:
    """Say that a clip has less than half of a model's frames, and what takes more."""
    note = (
        f"the clip has {count_of(num_frames, 'frame')}, fewer than half of the "
        f"{trained.num_frames} that {trained.model} was trained on, and may come out worse"
    )
    return "; ".join([note, *longer_ways(trained.num_frames, source, wanted, timing=timing)])


def resize_notes(
    resize: ResizePlan, source: SourceVideo, wanted: LoadSettings, trained: Trained | None
) -> tuple[str, ...]:
    """Say what a new size does to the image, and which others the model takes."""
    if trained is None or not trained.takes(wanted.width, wanted.height):  # a note of its own says
        return resize.notes()
    return resize.notes(other_size=trained.other_size(source, wanted))


def longer_hint(count: int, source: SourceVideo, wanted: LoadSettings, *, timing: Timing) -> str:
    """Write the hint for a model that takes clips of `count` frames alone, and got fewer."""
    ways = longer_ways(count, source, wanted, timing=timing)
    if ways:
        return "; or ".join(ways)
    here, least = len(find_span(source, wanted, timing=timing)), count - 7  # the last one again
    if here < source.num_frames:
        return (
            f"take more of the video: this part of it has {count_of(here, 'frame')}, and the "
            f"model needs {least} or more"
        )
    return f"take a video of {least} frames or more, or a text-to-video model"
