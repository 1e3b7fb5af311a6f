"""What is known about a video before its frames are read, and what of it a user is told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from cogedit.media.ffmpeg_output import AudioTrack
from cogedit.media.picture_format import Pictures
from cogedit.media.timing import Timing
from cogedit.sources import Reader, SourceVideo
from cogedit.types import LoadSettings
from cogedit.wording import count_of, show_rate


@dataclass(frozen=True)
class VideoFacts:
    """Everything that the probe finds out; `SourceVideo` is the part that is recorded."""

    codec: str  # ffmpeg's name
    stream: str  # ffmpeg's name of the video stream to read
    audio_tracks: tuple[AudioTrack, ...]
    width: int  # in pixels as displayed, after rotation and with square pixels
    height: int
    sample_aspect_ratio: Fraction  # width over height of a stored pixel, before rotation
    rotation: int  # clockwise, as the container asks for: 0, 90, 180 or 270 degrees
    timing: Timing  # of the stored frames
    num_lost: int  # pictures at the start that refer to others from before it
    pictures: Pictures  # how they are stored
    first_resized: int | None  # number of the first frame of another size; None: all have one
    is_damaged: bool  # ffmpeg complained while it listed the packets
    reader: Reader  # the decoder that is right for this file
    background: str = "black"  # what is laid under transparent frames
    deinterlace: bool = False  # whether frames of two fields are made whole
    grid: Fraction | None = None  # frames are taken at this even rate; None takes those stored
    is_untimed: bool = False  # its frames carry no times, and its rate may be chosen
    is_assumed: bool = False  # ... and nobody has
    # Timestamps of the keyframes, where it is read from one as from the start; otherwise empty.
    keyframes: tuple[int, ...] = ()
    is_sampled: bool = False  # of its pictures only the first was looked at
    own_notes: tuple[str, ...] = ()  # about the files of pictures

    @property
    def fps(self) -> Fraction:
        """Frames per second that the reader delivers."""
        return self.timing.rate if self.grid is None else self.grid

    @property
    def num_frames(self) -> int:
        """How many frames the reader delivers."""
        if self.grid is None:
            return len(self.timing.timestamps)
        return self.timing.num_shown(self.grid)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user about how the file is read, one sentence each."""
        notes = [*self.own_notes]
        if self.is_assumed:
            notes.append(
                f"its frames carry no times: {show_rate(self.fps)} are assumed (--fps N chooses)"
            )
        if self.grid is not None:
            reason = "" if self.timing.is_constant else "the frame rate varies: "
            notes.append(
                f"{reason}frames are taken at an even {show_rate(self.grid)}, as a player "
                "shows them (--frame-rate chooses another rate)"
            )
        if self.num_lost:
            notes.append(
                f"the file begins in the middle of a group of pictures: {self.num_lost} at its "
                f"start cannot be decoded, {count_of(len(self.timing.timestamps), 'frame')} can"
            )
        if self.is_damaged:
            readable = count_of(self.num_frames, "frame")
            notes.append(f"the file is damaged or cut short: {readable} can be read")
        if self.sample_aspect_ratio != 1:
            notes.append(f"pixels are not square: shown as {self.width}x{self.height}")
        return (*notes, *self._picture_notes())

    def _picture_notes(self) -> Iterator[str]:
        pictures = self.pictures
        if self.first_resized is not None:
            other = pictures.size_changes[0]
            yield (
                f"the video changes its size at frame {self.first_resized}, from "
                f"{pictures.width}x{pictures.height} to {other.width}x{other.height}: later frames "
                "are fitted into the first size, with bars where their shape is another"
            )
        if pictures.has_alpha:
            yield f"the video is transparent: laid on {self.background} (--background)"
        elif self.background != LoadSettings.background:
            yield "--background changes nothing of the video, which is not transparent"
        if pictures.is_hdr:
            filled = "" if not pictures.filled_tags else ", missing color tags filled in"
            yield f"the video is HDR: tone mapped to BT.709, with white at 203 nits{filled}"
        elif "bt709" in pictures.filled_tags:
            yield "the pictures name no color matrix: read as BT.709, as HD is"
        if pictures.field_order and self.deinterlace:
            yield "the video is interlaced: its frames are deinterlaced"
        elif pictures.field_order:
            yield (
                "the video is interlaced: each frame is read with its two fields as they are; "
                "--deinterlace gives cleaner edits"
            )
        elif self.deinterlace:
            yield "--deinterlace changes nothing: the video is not interlaced"

    def read_with(self, settings: LoadSettings) -> VideoFacts:
        """The facts under what a clip's settings say about reading."""
        by_ffmpeg = settings.deinterlace and self.reader == "decord"
        return replace(
            self,
            reader="ffmpeg" if by_ffmpeg else self.reader,
            background=settings.background,
            deinterlace=settings.deinterlace,
        )

    def read_as(self, source: SourceVideo, settings: LoadSettings) -> VideoFacts:
        """The facts under which a recorded clip was read.

        Versions before took no account of what its record lacks: its frames are read that way.
        """
        pictures = self.pictures
        if source.filled_tags != pictures.filled_tags:
            pictures = replace(pictures, filled_tags="")
        if not source.has_alpha:
            pictures = replace(pictures, has_alpha=False, decoder="")
        if not source.changes_size:
            pictures = replace(pictures, size_changes=())
        return replace(self, pictures=pictures).read_with(settings)
