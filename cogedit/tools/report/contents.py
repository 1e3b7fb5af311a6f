"""What a report says, before it becomes a page: text, figures, curves, addresses of videos."""

from __future__ import annotations

from dataclasses import dataclass

NONE = "\N{EN DASH}"
"""Shown where a figure is not known."""

Facts = tuple[tuple[str, str], ...]
"""Names and values, in the order in which they are shown."""


@dataclass(frozen=True)
class Movie:
    """A video and how to show it.

    Attributes:
        src: Its address: "data:..." or relative to the page.
        poster: Its first frame, "data:image/png...".
        width: In pixels.
        height: In pixels.
        num_frames: How many.
        fps: Frames per second.
    """

    src: str
    poster: str
    width: int
    height: int
    num_frames: int
    fps: float


@dataclass(frozen=True)
class Figure:
    """A number about a clip.

    Attributes:
        name: What it is.
        value: As it is shown, with its unit.
        note: What it is measured against.
    """

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class Curve:
    """One line of a plot.

    Attributes:
        label: What it shows.
        points: (x, y), in the order in which they are joined.
        is_reference: Whether it is only there to compare with; it is drawn dashed.
    """

    label: str
    points: tuple[tuple[float, float], ...]
    is_reference: bool = False


@dataclass(frozen=True)
class Plot:
    """Some curves over one axis.

    Attributes:
        title: What is plotted.
        x_label: Under the axis.
        curves: The lines.
        is_logarithmic: Whether the y axis counts powers of ten.
        is_falling: Whether x falls from left to right, as the levels of an edit do.
    """

    title: str
    x_label: str
    curves: tuple[Curve, ...]
    is_logarithmic: bool = False
    is_falling: bool = False


@dataclass(frozen=True)
class Inversion:
    """An inversion of the clip.

    Attributes:
        key: The first digits of its content key.
        facts: How it was made.
        figures: How good it is.
        plots: Over its levels.
    """

    key: str
    facts: Facts
    figures: tuple[Figure, ...]
    plots: tuple[Plot, ...]


@dataclass(frozen=True)
class Edit:
    """An edit of the clip.

    Attributes:
        key: The first digits of its content key.
        prompt: What it is to show.
        movie: The edit, at the clip's size and rate.
        mask: The mask's middle frame as "data:image/png..."; None where there is none.
        figures: About the edit, the same names in every edit of a report.
        distinct: What tells it from the other edits under its prompt; empty where it is alone.
        changed: The mask that was given, and settings that are not the default's.
        settings: The mask that was given, and all settings that have a value.
        facts: What else is known: inversion, model, time and memory.
        plots: Over its steps.
    """

    key: str
    prompt: str
    movie: Movie
    mask: str | None
    figures: tuple[Figure, ...]
    distinct: Facts
    changed: Facts
    settings: Facts
    facts: Facts
    plots: tuple[Plot, ...]


@dataclass(frozen=True)
class Clip:
    """A clip and everything that was made of it.

    Attributes:
        title: Name of the video.
        facts: About video and clip.
        source: The clip; None where neither its frames nor its latents are in the workspace.
        source_label: What `source` is, in a word or two.
        figures: About the clip itself.
        inversions: Those of the clip, in the order in which they were written.
        edits: Likewise.
    """

    title: str
    facts: Facts
    source: Movie | None
    source_label: str
    figures: tuple[Figure, ...]
    inversions: tuple[Inversion, ...]
    edits: tuple[Edit, ...]


@dataclass(frozen=True)
class Contents:
    """A whole report.

    Attributes:
        title: Of the page.
        clips: Usually one: a workspace belongs to a video.
        notice: How the edits differ from what the settings say, for the page's head; often empty.
        left_out: Artifacts that are not shown, and why.
        version: The cogedit that made the report.
    """

    title: str
    clips: tuple[Clip, ...]
    notice: str
    left_out: Facts
    version: str
