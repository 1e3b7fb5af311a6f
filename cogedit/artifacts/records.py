"""What is known about each artifact: one frozen record per kind, each holding its parent's whole.

The chain is frames -> latents -> trajectory -> edit. A record nests the complete record of the
artifact it was made from, digests of the parent's tensors included, so that one file alone explains
how to remake it and its content key covers everything upstream of it. There is no clock, host name
or absolute path in a record: equal runs give equal bytes.
"""

from __future__ import annotations

import hashlib
import reprlib
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, TypeVar, cast

from msgspec import Meta

from cogedit.artifacts.codec import Json, JsonText, canonical_text, decode_record, encode_record
from cogedit.artifacts.model_record import ModelRecord
from cogedit.clip_times import RATE_WORDS
from cogedit.errors import ArtifactError
from cogedit.schema import Count, Positive, later
from cogedit.sources import Digest, MaskSource, PictureSource, ResizeBox, SourceVideo
from cogedit.types import (
    ArtifactKind,
    EncodeSettings,
    InvertSettings,
    LoadSettings,
    ReconstructSettings,
    WindowPlan,
)
from cogedit.version import __version__

SCHEMA_VERSION = 1
"""Raise it whenever a record's fields or the meaning of a tensor change."""

TensorDType = Literal["uint8", "float32", "int64"]


@dataclass(frozen=True)
class TensorRecord:
    """One tensor of an artifact."""

    name: str  # as in the table of `cogedit.artifacts.layout`
    dtype: TensorDType
    shape: tuple[Positive, ...]
    sha256: Digest  # of its little-endian bytes in row-major order


@dataclass(frozen=True)
class FramesRecord:
    """A clip: the frames of a video that were chosen, at the size they are edited in.

    Its tensor is `frames` [F, H, W, 3] uint8 RGB. Tensors of a record are empty until written.
    The settings hold the seconds as they were asked for; those that were taken follow from the
    indices, since frame k of the source is shown from k / `source.fps` on.
    """

    kind: ClassVar[ArtifactKind] = "frames"
    json_constants: ClassVar[dict[str, Json]] = {"kind": "frames", "schema": SCHEMA_VERSION}

    source: SourceVideo
    settings: LoadSettings
    # F numbers of frames in the source, ascending; only the extra ones may repeat the last.
    frame_indices: Annotated[tuple[Count, ...], Meta(min_length=1)]
    fps: Fraction  # of the clip, exact
    box: ResizeBox
    # Of the last of them, how many nobody asked for: the VAE takes 8n + 1 frames. No export has
    # them.
    num_extra_frames: Count = later(0)
    # Number in the source of the first frame after the seconds that were asked for, where they end
    # before the next frame would have been taken; frames between are shown up to it.
    end_frame: Count | None = later(None)
    cogedit_version: str = __version__
    tensors: tuple[TensorRecord, ...] = ()

    @property
    def num_frames(self) -> int:
        """How many frames of the clip are shown: those without the extra ones."""
        return len(self.frame_indices) - self.num_extra_frames

    @property
    def shown_indices(self) -> tuple[int, ...]:
        """Numbers in the source of the frames that are shown."""
        return self.frame_indices[: self.num_frames]

    @property
    def span(self) -> tuple[Fraction, Fraction]:
        """When the shown frames begin and end in the source, in seconds after its first frame."""
        source, indices = self.source, self.shown_indices
        end = min(indices[-1] / source.fps + 1 / self.fps, source.num_frames / source.fps)
        return indices[0] / source.fps, end


@dataclass(frozen=True)
class LatentsRecord:
    """A clip in the VAE's latent space: `latents` [B, F', C, H', W'] float32, scaled.

    Of a model that takes a first frame, also `first_frame` [B, 1, C, H', W'] float32: the first
    frame encoded alone, scaled as that model takes it.
    """

    kind: ClassVar[ArtifactKind] = "latents"
    json_constants: ClassVar[dict[str, Json]] = {"kind": "latents", "schema": SCHEMA_VERSION}

    frames: FramesRecord
    model: ModelRecord
    settings: EncodeSettings
    has_first_frame: bool = later(False)
    cogedit_version: str = __version__
    tensors: tuple[TensorRecord, ...] = ()


@dataclass(frozen=True)
class TrajectoryRecord:
    """The inversion of a clip: its latents at every timestep.

    Its tensors are `trajectory` [N, B, F', C, H', W'] float32 in inversion order, `timesteps` [N]
    int64 and `latents` [B, F', C, H', W'] float32, the clean sample, padded alike; where the
    latents have one, also their `first_frame`.
    """

    kind: ClassVar[ArtifactKind] = "trajectory"
    json_constants: ClassVar[dict[str, Json]] = {"kind": "trajectory", "schema": SCHEMA_VERSION}

    latents: LatentsRecord
    model: ModelRecord
    settings: InvertSettings
    scheduler: JsonText  # configuration of the forward scheduler, from `canonical_json`
    num_pad_frames: Count = 0  # added in front for `patch_size_t`, stripped before decoding
    windows: WindowPlan | None = later(None)  # over the padded clip; None is one pass over it all
    cogedit_version: str = __version__
    tensors: tuple[TensorRecord, ...] = ()


@dataclass(frozen=True)
class EditRecord:
    """A clip denoised under a new prompt.

    Its tensors are `latents` [B, F', C, H', W'] float32; with `has_trajectory` also `trajectory`
    [N, B, F', C, H', W'] float32 in denoising order; with `has_mask` also `mask` [F, H, W] uint8,
    1 where the source may change, and `source_latents`, z0 of the source shaped like `latents`:
    what an export needs to put the source back outside the mask.
    """

    kind: ClassVar[ArtifactKind] = "edit"
    json_constants: ClassVar[dict[str, Json]] = {"kind": "edit", "schema": SCHEMA_VERSION}

    trajectory: TrajectoryRecord
    model: ModelRecord
    settings: ReconstructSettings
    has_trajectory: bool = (
        False  # in the key: a file without the steps cannot replace one with them
    )
    mask: MaskSource | None = None  # where a given mask comes from
    # What the model was shown in place of the source's own first frame.
    first_frame: PictureSource | None = later(None)
    cogedit_version: str = __version__
    tensors: tuple[TensorRecord, ...] = ()

    @property
    def has_mask(self) -> bool:
        """Whether a mask, given or found, bounds the edit; the file then holds it."""
        return self.mask is not None or self.settings.auto_mask

    @property
    def title(self) -> str:
        """What it shows, for people: its prompt, or without one its first frame."""
        picture = "(empty prompt)" if self.first_frame is None else self.first_frame.name
        return self.settings.prompt.strip() or picture


Record = FramesRecord | LatentsRecord | TrajectoryRecord | EditRecord
RecordT = TypeVar("RecordT", bound=Record)

RECORD_TYPES: dict[ArtifactKind, type[Record]] = {
    "frames": FramesRecord,
    "latents": LatentsRecord,
    "trajectory": TrajectoryRecord,
    "edit": EditRecord,
}
"""In the order in which the stages make them."""


def content_key(record: Record) -> str:
    """What identifies an artifact before it is made: sha256 in hex of its record.

    The record's own tensor digests are left out, since they are known only afterwards; those of
    its parents are in. So is what a model is called and where it ran: its digest says which it is;
    what a first frame is called; and how the seconds of a clip were asked for, since its frames are
    named one by one.
    Two artifacts with one key are interchangeable.

    Raises:
        ArtifactError: A field of the record holds another type than it declares.
    """
    value = _without_provenance(encode_record(replace(record, tensors=())))
    return hashlib.sha256(canonical_text(value).encode("ascii")).hexdigest()


_PROVENANCE = frozenset({"id", "revision", "device", "torch", "transformer", "vae"})
"""Fields of a model that are in no content key."""

_ASKED = ("start", "end", "duration")
"""Settings of a clip that are in none; nor is a rate in a word, `source` or `spread`."""


def _without_provenance(value: Json) -> Json:
    """A record as JSON without its models' provenance, and the seconds that were asked for.

    A model of 0.1.0 keeps its name: artifacts that exist keep their keys.
    """
    if not isinstance(value, dict):
        return value
    kept = dict(value)
    for parent in ("frames", "latents", "trajectory"):
        if parent in kept:
            kept[parent] = _without_provenance(kept[parent])
    settings = kept.get("settings")
    if "frame_indices" in kept and isinstance(settings, dict):
        asked = {*_ASKED, *(["frame_rate"] if settings.get("frame_rate") in RATE_WORDS else [])}
        kept["settings"] = {key: item for key, item in settings.items() if key not in asked}
    model = kept.get("model")
    if isinstance(model, dict) and "torch" in model:
        model = {key: item for key, item in model.items() if key not in _PROVENANCE}
        if isinstance(loras := model.get("lora"), list):
            model["lora"] = [_nameless(lora) for lora in loras]
        kept["model"] = model
    picture = kept.get("first_frame")
    if isinstance(picture, dict):
        kept["first_frame"] = _nameless(picture)
    return kept


def _nameless(lora: Json) -> Json:
    return {key: item for key, item in cast("dict[str, Json]", lora).items() if key != "name"}


def earlier_record(record: RecordT) -> RecordT:
    """The record as cogedit 0.1.0 wrote it: without provenance, its models' names in the key."""
    if isinstance(record, FramesRecord):
        return record
    made: Record = record
    if isinstance(made, TrajectoryRecord):
        made = replace(made, latents=earlier_record(made.latents))
    elif isinstance(made, EditRecord):
        made = replace(made, trajectory=earlier_record(made.trajectory))
    if not isinstance(made, FramesRecord):
        made = replace(made, model=replace(made.model, device=None, torch=None))
    return cast(RecordT, made)


def frames_record(record: Record) -> FramesRecord:
    """The clip at the start of a record's chain: its source, fps and frame count."""
    return cast(FramesRecord, chain_of(record)[0])


def num_pad_frames(record: Record) -> int:
    """Latent frames that were added in front before the inversion; 0 where there was none."""
    if isinstance(record, EditRecord):
        record = record.trajectory
    return record.num_pad_frames if isinstance(record, TrajectoryRecord) else 0


def has_first_frame(record: Record) -> bool:
    """Whether a record is of latents, or made from some, that have a first frame beside them."""
    return any(
        isinstance(link, LatentsRecord) and link.has_first_frame for link in chain_of(record)
    )


def record_text(record: Record) -> str:
    """Canonical JSON of a record. Raises `ArtifactError` for a field of a wrong type."""
    return canonical_text(encode_record(record))


def record_from_json(value: Json, kind: ArtifactKind, text: str | None = None) -> Record:
    """The record of a JSON object, with the values that later stages use checked.

    Raises:
        ArtifactError: A field is missing, unknown, of another type or without meaning.
    """
    record: Record = decode_record(value, RECORD_TYPES[kind], text)
    check_meaning(record)
    return record


def chain_of(record: Record) -> tuple[Record, ...]:
    """A record and those it was made from, the clip first."""
    match record:
        case EditRecord():
            return (*chain_of(record.trajectory), record)
        case TrajectoryRecord():
            return (*chain_of(record.latents), record)
        case LatentsRecord():
            return (record.frames, record)
        case FramesRecord():
            return (record,)


def check_meaning(record: Record) -> None:
    """Refuse values that types and ranges allow and no clip has, before a later stage uses one.

    A record may come from anywhere, and its names become file names.

    Raises:
        ArtifactError: Naming the field, what was found and what was expected.
    """
    for link in chain_of(record):
        if isinstance(link, FramesRecord):
            _check_frame_indices(link)
            _check_name("source.name", link.source.name, is_file=True)
            if link.source.pattern is not None:
                _check_name("source.pattern", link.source.pattern, is_file=True)
            continue
        _check_name("model.id", link.model.id, is_file=False)
        for lora in link.model.lora:
            _check_name("lora.name", lora.name, is_file=True)
        if isinstance(link, TrajectoryRecord) and link.windows is not None:
            _check_windows(link.windows)
    if isinstance(record, EditRecord) and record.mask is not None:
        _check_name("mask.name", record.mask.name, is_file=True)
    if isinstance(record, EditRecord) and record.first_frame is not None:
        _check_name("first_frame.name", record.first_frame.name, is_file=True)


def _check_frame_indices(frames: FramesRecord) -> None:
    if frames.num_frames < 1:
        raise ArtifactError(
            f"num_extra_frames is {frames.num_extra_frames}, expected less than the "
            f"{len(frames.frame_indices)} frame_indices"
        )
    for number, (before, after) in enumerate(pairwise(frames.frame_indices), 1):
        if after < before or (after == before and number < frames.num_frames):
            raise ArtifactError("frame_indices are not ascending")
    if frames.frame_indices[-1] >= frames.source.num_frames:
        raise ArtifactError(
            f"the last frame index is {frames.frame_indices[-1]}, expected less than "
            f"source.num_frames, {frames.source.num_frames}"
        )


def _check_windows(windows: WindowPlan) -> None:
    if windows.overlap + windows.shift >= windows.length:
        raise ArtifactError(
            f"windows have overlap {windows.overlap} and shift {windows.shift}, expected less "
            f"than their length, {windows.length}, together"
        )


def _check_name(field: str, name: str, *, is_file: bool) -> None:
    """Check that a name can be a file's, and names nothing outside its folder."""
    try:
        # Names that are not UTF-8 hold what "surrogateescape" made of their bytes.
        name.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        is_name = False
    else:
        is_name = name not in ("", ".", "..") and "\0" not in name
        is_name = is_name and not (is_file and "/" in name)
    if not is_name:
        expected = "the name of a file without its folder" if is_file else "a name"
        raise ArtifactError(f"{field} is {reprlib.repr(name)}, expected {expected}")
