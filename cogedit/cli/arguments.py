"""Arguments and options of single commands, declared once; settings have theirs in `flags`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from cogedit.errors import UsageError
from cogedit.schema import path_of


def argument(
    metavar: str,
    text: str,
    *,
    complete: Callable[[str], list[str]] | None = None,
    parser: Callable[[str], object] | None = None,
) -> object:
    """Declare an argument by its name in the help, and what it is."""
    return typer.Argument(
        metavar=metavar,
        help=text,
        autocompletion=complete,
        show_default=False,
        parser=parser or _path,
    )


def option(
    *names: str,
    text: str,
    metavar: str | None = None,
    panel: str | None = None,
    is_path: bool = False,
    parser: Callable[[str], object] | None = None,
) -> object:
    """Declare an option by its names, and what it does."""
    return typer.Option(
        *names,
        help=text,
        metavar=metavar,
        rich_help_panel=panel,
        show_default=False,
        parser=_path if is_path else parser,
    )


def output_option(text: str = "The file to write.", *, keeps_slash: bool = False) -> object:
    """Declare `--output`; with `keeps_slash` as text, whose last slash says that it is a folder."""
    parser = path_text if keeps_slash else _path
    return option("--output", "-o", text=text, metavar="PATH", parser=parser)


def _path(text: str) -> Path:
    """Read a path, with `~` as the home folder.

    The shell replaces it at the beginning of a word only, and not in `--output=~/bear.mp4`.
    """
    try:
        return path_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def path_text(text: str) -> str:
    """Read what may be a path and stays text: a box, `-`, or a folder by the slash at its end."""
    path, slash = _path(text), "/" if text.endswith("/") else ""
    return f"{path}{slash}" if text.startswith("~") else text


Video = Annotated[Path, argument("VIDEO", "A video file, or a folder of pictures.")]
Output = Annotated[Path | None, output_option()]
Trajectory = Annotated[
    Path | None,
    argument(
        "TRAJECTORY",
        "A trajectory, or what it is made from. Default: the newest trajectory here.",
    ),
]
Prompts = Annotated[
    list[str] | None,
    option("--prompt", "-p", text="What the edit shows; repeat it for more edits."),
]
Mask = Annotated[
    str | None,
    option(
        "--mask",
        # The box in full would leave no room for the names of the options in 80 columns.
        metavar="FILE|BOX",
        text="Where the edit may change the source: an image or a video, white there, or a box "
        "x0,y0,x1,y1 in pixels of the source; @FIRST:LAST limits it to frames FIRST to LAST - 1.",
        panel="Mask",
        parser=path_text,
    ),
]
FirstFrames = Annotated[
    list[Path] | None,
    option(
        "--first-frame",
        is_path=True,
        metavar="FILE",
        text="The first frame of the edit, for an image-to-video model: a picture that `cogedit "
        "frame` made and you changed. It needs no prompt.",
        panel="Edit",
    ),
]
SourceVideo = Annotated[
    Path | None,
    option(
        "--source",
        is_path=True,
        metavar="VIDEO",
        text="The video that the clip was read from. Default: searched for here and beside the "
        "artifacts.",
        panel="Video",
    ),
]
WithSource = Annotated[
    bool,
    option(
        "--with-source",
        text="Also write the source clip: same frames, size and codec.",
        panel="Video",
    ),
]
DryRun = Annotated[
    bool, option("--dry-run", text="Estimate time, memory and reuse; write nothing.")
]


def only_first_frame(given: Sequence[Path] | None) -> Path | None:
    """Return the one first frame of a run, if there is any; UsageError for more."""
    if given and len(given) > 1:
        raise UsageError(
            f"--first-frame is given {len(given)} times, expected once",
            hint="run the command again for each picture: the inversion is reused",
        )
    return given[0] if given else None
