"""One HTML page over a workspace, which needs no network, no library and no other file."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cogedit.artifacts import Workspace, atomic_write, default_workspace, keep_in_use
from cogedit.config import Settings
from cogedit.errors import UsageError
from cogedit.stages.arguments import as_path
from cogedit.stages.run import Exported, Run, check_output
from cogedit.stages.session import Session, use_session
from cogedit.tools.report.contents import Clip, Reporter
from cogedit.tools.report.files import read_workspace
from cogedit.tools.report.movies import MovieWriter
from cogedit.version import __version__
from cogedit.wording import count_of

GENERATOR = "cogedit report"
"""Start of the page's `generator`: only a page with it is replaced without --force."""

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def report(
    workspace: str | Path,
    settings: Settings,
    *,
    output: str | Path | None = None,
    beside: bool = False,
    run: Run | None = None,
    session: Session | None = None,
) -> Exported:
    """Write a page that compares the edits of a workspace with their source.

    Each edit is decoded by the model that made it; where `settings` name one, by that. Artifacts
    that cannot be read, or whose model is another or not here, are listed on the page with the
    reason.

    Args:
        workspace: The folder of the artifacts.
        settings: `model`, `device`, `dtype` and `decode_tiling`, for decoding; the model `auto`
            and the dtype None are those of each artifact.
        output: The page, ending in .html; None is `report.html` in the workspace.
        beside: Keep the videos in a folder beside the page, `<name>-videos`; else the page holds
            them itself.
        run: How to run; None is silent.
        session: Holds the loaded model; None loads it for this call.

    Raises:
        UsageError: The workspace holds no edit, or `output` is another file.
        ModelError: The model is missing or incomplete; where none was named, all are.
        DeviceMemoryError: The device is out of memory.
        StorageError: The page cannot be written.
    """
    workspace, run = Path(workspace), run or Run()
    path = as_path(output) or workspace / "report.html"
    if not workspace.is_dir():
        own = default_workspace(workspace)  # of a video that was named in its place
        name = own if own.is_dir() else "*.cogedit"
        raise UsageError(f"{workspace} is not a folder", hint=f"name a workspace, {name}")
    _check_output(path, run)
    clips, left_out = read_workspace(workspace)
    clips = [clip for clip in clips if clip.edits or clip.inversions]
    if not clips:
        raise UsageError(
            f"there is no edit in {workspace}",
            hint="make one with `cogedit edit VIDEO --prompt TEXT --workspace "
            f"{shlex.quote(str(workspace))}`",
        )
    with _movie_writer(path, workspace, beside=beside) as movies, use_session(session) as owner:
        keep_in_use(workspace)
        reporter = Reporter(workspace, settings, movies, left_out, run=run, session=owner)
        contents = reporter.clips(clips)
    num_edits = sum(len(clip.edits) for clip in contents)
    of_all = sum(len(clip.edits) for clip in clips)
    shown = count_of(of_all, "edit") if num_edits == of_all else f"{num_edits} of {of_all} edits"
    notice = ""
    if num_edits and settings.export.align_edges:
        notice = (
            f"Edits are shown as the model made them: align-edges {settings.export.align_edges} "
            "applies to exports and not to this page."
        )
        run.notify(notice)
    write_page(path, contents, left_out, notice)
    for name, reason in sorted(left_out.items()):
        run.notify(f"left out {name}: {reason}")
    run.notify(f"wrote {path} ({shown}, {path.stat().st_size / 1e6:.1f} MB)")
    return Exported(path, reused=False)


def write_page(
    path: Path, clips: Sequence[Clip], left_out: Mapping[str, str], notice: str = ""
) -> None:
    """Write the page of some clips, whole or not at all.

    It is written piece by piece, each with two videos at most: no more of it is in memory.

    Args:
        path: The page.
        clips: What it shows.
        left_out: By file name, why an artifact is not shown.
        notice: A sentence for its head.

    Raises:
        StorageError: It cannot be written.
    """
    pieces = _TEMPLATES.get_template("page.html.j2").generate(
        title=", ".join(dict.fromkeys(clip.title for clip in clips)),
        generator=f"{GENERATOR} {__version__}",
        version=__version__,
        notice=notice,
        clips=clips,
        left_out=dict(sorted(left_out.items())),
    )
    with atomic_write(path) as file:
        for piece in pieces:
            file.write(piece.encode(errors="surrogateescape"))


def _check_output(path: Path, run: Run) -> None:
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"a report is an HTML page; found -o {path}", hint="end it in .html")
    check_output(path, inputs=[], run=run)
    if path.exists() and not run.force:
        is_report = False
        if path.is_file():  # a pipe would be waited for
            with path.open("rb") as file:
                is_report = f'content="{GENERATOR}'.encode() in file.read(2000)
        if not is_report:
            raise UsageError(
                f"{path} exists and is not a report",
                hint="choose another -o, or replace it with --force",
            )


@contextmanager
def _movie_writer(page: Path, workspace: Path, *, beside: bool) -> Iterator[MovieWriter]:
    """Prepare a folder for the videos of a page: beside it, or temporary to embed them."""
    if beside:
        kept = page.parent / f"{page.stem}-videos"
        Workspace(kept).create()
        yield MovieWriter(kept, page.parent, scratch=workspace)
        return
    with tempfile.TemporaryDirectory(prefix="cogedit-report-") as folder:
        yield MovieWriter(Path(folder), None, scratch=workspace)
