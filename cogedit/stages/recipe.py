"""The recipe that an exported video carries: its artifact's record, and how it was written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from cogedit.artifacts import (
    Json,
    LatentsRecord,
    Record,
    TrajectoryRecord,
    content_key,
    frames_record,
    parse_json,
    record_of,
    record_text,
)
from cogedit.errors import ArtifactDamaged, ArtifactError, ArtifactMismatch
from cogedit.media.encoding import Encoding
from cogedit.media.recipe_comment import find_comment
from cogedit.types import Composite, DType, ExportSettings, VideoSize

_MAX_INDICES = 1_000_000


@dataclass(frozen=True)
class Recipe:
    """What makes an exported video the one that is wanted: `ExportSettings` as they apply to it."""

    record: Record  # of the artifact
    fps: Fraction
    encoding: Encoding
    size: VideoSize = "clip"
    sound: bool = False
    audio_track: int | None = None  # that was asked for
    composite: Composite = "none"  # also where there is no mask
    feather: int = 0  # 0 without a composite
    align_edges: int = 0
    every_frame: bool = False
    dtype: DType | None = None  # that the VAE decodes in; None where nothing is decoded
    # None where nothing is decoded, or where it follows from the memory that will be free.
    decode_tiling: bool | None = None
    splice: bool = False
    crossfade: int = 0

    def check_size(self) -> None:
        """Refuse frames of a size that the codec does not take."""
        frames = frames_record(self.record)
        shown = frames.source if self.size == "source" else frames.settings
        self.encoding.check_frames(shown.width, shown.height, fps=self.fps)

    def comment(self) -> str:
        """Return the recipe as canonical JSON, for the video's metadata."""
        options: dict[str, Json] = {
            "align_edges": self.align_edges,
            "codec": self.encoding.codec,
            "composite": self.composite,
            "crf": self.encoding.crf,
            "dtype": self.dtype,
            "feather": self.feather,
            "fps": str(self.fps),
            "lossless": self.encoding.lossless,
            "size": self.size,
            "sound": self.sound,
            "vae_tiling": self.decode_tiling,  # its name in 0.1.0
        }
        if self.sound and self.audio_track is not None:
            options["audio_track"] = self.audio_track
        if self.splice:
            options |= {"splice": True, "crossfade": self.crossfade}
        if self.every_frame:
            options["every_frame"] = True
        record = json.loads(record_text(self.record), object_hook=_with_short_indices)
        recipe = {"cogedit": record, "content_key": content_key(self.record), "export": options}
        return json.dumps(recipe, sort_keys=True, separators=(",", ":"))


def idle_options(recipe: Recipe, options: ExportSettings) -> Iterator[str]:
    """Say which options change nothing in a video."""
    if options.every_frame and isinstance(recipe.record, LatentsRecord | TrajectoryRecord):
        yield "--every-frame changes nothing: only edits are shown on other frames"
    if options.crossfade and not recipe.splice:
        yield "--crossfade changes nothing without --splice"
    if options.audio_track is not None and not recipe.sound:
        yield "--audio-track changes nothing: the video is written without audio"
    if options.feather and recipe.composite == "none":
        yield "--feather changes nothing: no part of the video is the source's by a mask"


@dataclass(frozen=True)
class FoundRecipe:
    """A recipe that was read from a video: the artifact's record, and the options of its export."""

    record: Record
    options: Mapping[str, Json]


def read_recipe(path: Path) -> FoundRecipe:
    """Read the recipe of a video, a GIF, a PNG or a folder of them.

    Raises:
        ArtifactMismatch: It carries no recipe, or one of a newer version.
        ArtifactDamaged: The recipe was altered.
    """
    comment = find_comment(path)
    if comment is None or '"cogedit":' not in comment:
        raise ArtifactMismatch(
            f"{path} is no artifact, and carries no recipe of cogedit",
            hint="name an artifact, or a video that `cogedit export` or `edit` wrote",
        )
    try:
        recipe = parse_json(comment)
    except ArtifactError as error:
        raise ArtifactDamaged(f"the recipe of {path} is damaged: {error.message}") from error
    if not isinstance(recipe, dict):
        raise ArtifactDamaged(f"the recipe of {path} is damaged: it is no object")
    value, options = _with_long_indices(recipe.get("cogedit")), recipe.get("export")
    if not isinstance(value, dict) or not isinstance(options, dict):
        raise ArtifactDamaged(f"the recipe of {path} is damaged: it has no record")
    record = record_of(value)
    if content_key(record) != recipe.get("content_key"):
        raise ArtifactDamaged(f"the recipe of {path} was altered: its content key differs")
    return FoundRecipe(record, options)


def _with_short_indices(value: dict[str, object]) -> dict[str, object]:
    """Write evenly spaced frame indices as first:end:step; metadata has little room.

    A last one that is repeated follows as xN, N times.
    """
    indices = value.get("frame_indices")
    if isinstance(indices, list) and len(indices) > 1:
        step, last = indices[1] - indices[0] or 1, indices[-1]
        again = indices.count(last) - 1
        if indices == [*range(indices[0], last + 1, step), *[last] * again]:
            short = f"{indices[0]}:{last + 1}:{step}"
            return value | {"frame_indices": f"{short}x{again}" if again else short}
    return value


def _with_long_indices(value: Json) -> Json:
    """Undo `_with_short_indices` in a record and the records inside of it."""
    if not isinstance(value, dict):
        return value
    changed = {key: _with_long_indices(item) for key, item in value.items()}
    short = changed.get("frame_indices")
    if isinstance(short, str):
        spaced, _, times = short.partition("x")
        try:
            indices = range(*(int(part) for part in spaced.split(":")))
            count, again = len(indices), int(times or 0)
        except (TypeError, ValueError, OverflowError) as error:
            raise ArtifactDamaged(f"the recipe has the frame indices {short!r}") from error
        if 0 < count <= _MAX_INDICES and 0 <= again <= _MAX_INDICES:
            changed["frame_indices"] = [*indices, *[indices[-1]] * again]
    return changed
