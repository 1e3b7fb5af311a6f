"""The commands. Each parses, calls one stage and prints what was written.

The stages are imported by the command that runs them: `--help` needs none of them.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cogedit.cli.batch import batch
from cogedit.cli.cache import cache_app
from cogedit.cli.comparison import compare
from cogedit.cli.configuration import config_app
from cogedit.cli.diagnosis import doctor
from cogedit.cli.dry_run import show_estimate
from cogedit.cli.flags import GLOBAL_SETTINGS
from cogedit.cli.options import Call, with_options
from cogedit.cli.reporting import report
from cogedit.cli.screen import Screen, tell_stopped
from cogedit.cli.usage import Commands
from cogedit.errors import UsageError
from cogedit.version import __version__

if TYPE_CHECKING:
    from cogedit.artifacts import Record
    from cogedit.stages import Exported, Written

app = typer.Typer(
    name="cogedit",
    cls=Commands,
    help="Edit real videos by text with CogVideoX: invert once, edit many times.",
    epilog="Begin with `cogedit doctor`, then `cogedit edit VIDEO --prompt TEXT --dry-run`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(config_app)
app.add_typer(cache_app)
app.command()(doctor)
app.command()(report)

Video = Annotated[Path, typer.Argument(metavar="VIDEO", help="A video file.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="The file to write.", show_default=False)
]
Prompts = Annotated[
    list[str],
    typer.Option("--prompt", "-p", help="What the edit shows; give it again for more edits."),
]
Mask = Annotated[
    str | None,
    typer.Option(
        "--mask",
        # With the box spelt out, nothing would be left of 80 columns for the names beside it.
        metavar="FILE|BOX",
        help="Where the edit may change the source: a picture or a video, white there, or a box "
        "x0,y0,x1,y1 in pixels of the source; with @FIRST:LAST only in its frames FIRST to "
        "LAST - 1.",
        rich_help_panel="Mask",
        show_default=False,
    ),
]

SourceVideo = Annotated[
    Path | None,
    typer.Option(
        "--source",
        metavar="VIDEO",
        help="The video that the clip was taken from. Default: looked for here and beside the "
        "artifacts.",
        rich_help_panel="Video",
        show_default=False,
    ),
]
WithSource = Annotated[
    bool,
    typer.Option(
        "--with-source",
        help="Write the source clip beside it: same frames, size and codec.",
        rich_help_panel="Video",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Say what it would take in time and memory; write nothing."),
]

Trajectory = Annotated[
    Path | None,
    typer.Argument(
        metavar="TRAJECTORY",
        help="A trajectory or anything before it. Default: the newest trajectory here.",
        show_default=False,
    ),
]


def main() -> None:
    """Run the command line."""
    try:
        app()
    except KeyboardInterrupt:  # while the options are read; later a command handles it
        sys.exit(tell_stopped(signal.SIGINT, Screen()))


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """Edit real videos by text with CogVideoX: invert once, edit many times."""
    if version:
        typer.echo(f"cogedit {__version__}")
        raise typer.Exit


@app.command()
@with_options("load")
def load(call: Call, video: Video, output: Output = None) -> None:
    """Read a clip of a video: VIDEO -> frames."""
    from cogedit import stages

    settings = call.settings(video)
    _print(call, "load", [stages.load(video, settings, output=output, run=call.run)])


@app.command()
@with_options("load", "encode")
def encode(
    call: Call,
    source: Annotated[Path, typer.Argument(metavar="FRAMES|VIDEO", help="What to encode.")],
    output: Output = None,
) -> None:
    """Encode a clip with the VAE: frames -> latents."""
    from cogedit import stages

    settings = call.settings(source)
    _print(call, "encode", [stages.encode(source, settings, output=output, run=call.run)])


@app.command()
@with_options("load", "encode", "invert", "transformer", without=("transformer.rows",))
def invert(
    call: Call,
    source: Annotated[Path, typer.Argument(metavar="LATENTS|FRAMES|VIDEO", help="What to invert.")],
    check: Annotated[
        bool,
        typer.Option("--check", help="Sample back from the noise and say how near it comes."),
    ] = False,
    dry_run: DryRun = False,
    output: Output = None,
) -> None:
    """Invert a clip into noise, keeping every level: latents -> trajectory."""
    from cogedit import stages, tools

    settings = call.settings(source, decodes=check)
    if dry_run:
        show_estimate(call.screen, "invert", tools.estimate(source, settings, run=call.run))
        return
    written = stages.invert(source, settings, output=output, run=call.run)
    if check:
        found = stages.check_inversion(written.path, settings, run=call.run)
        call.screen.say(
            f"sampled back: {found.psnr:.1f} dB against the VAE's round trip; standard deviation "
            f"of the noise {found.std:.3f} (fresh noise has 1)"
        )
    _print(call, "invert", [written])


@app.command()
@with_options("load", "encode", "invert", "reconstruct", "transformer")
def reconstruct(
    call: Call,
    prompt: Prompts,
    source: Trajectory = None,
    mask: Mask = None,
    save_trajectory: Annotated[
        bool, typer.Option("--save-trajectory", help="Keep every step of the edit.")
    ] = False,
    dry_run: DryRun = False,
    output: Output = None,
) -> None:
    """Denoise a trajectory under new prompts: trajectory -> edits."""
    from cogedit import stages, tools

    trajectory = source or _newest_trajectory(call)
    settings = call.settings(trajectory)
    if dry_run:
        found = tools.estimate(
            trajectory,
            settings,
            prompts=prompt,
            save_trajectory=save_trajectory,
            mask=mask,
            run=call.run,
        )
        show_estimate(call.screen, "reconstruct", found)
        return
    written = stages.reconstruct(
        trajectory,
        prompt,
        settings,
        mask=mask,
        output=output,
        save_trajectory=save_trajectory,
        run=call.run,
    )
    _print(call, "reconstruct", written)


@app.command()
@with_options("load", "encode", "invert", "reconstruct", "transformer")
def sweep(
    call: Call,
    prompt: Prompts,
    vary: Annotated[
        list[str],
        typer.Option(
            "--vary",
            metavar="NAME=V,V,...",
            help="An option and its values, such as strength=0.25,0.5,1; again for a grid.",
        ),
    ],
    source: Trajectory = None,
    mask: Mask = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The contact sheet, a PNG.", show_default=False),
    ] = None,
) -> None:
    """Edit under a grid of settings, onto one contact sheet: trajectory -> png + json."""
    from cogedit import tools

    trajectory = source or _newest_trajectory(call)
    settings = call.settings(trajectory, decodes=True)
    swept = tools.sweep(
        trajectory, prompt, settings, vary=vary, mask=mask, output=output, run=call.run
    )
    rows = [
        {"path": str(swept.sheet), "kind": "picture", "reused": False},
        {"path": str(swept.figures), "kind": "figures", "reused": False},
    ]
    call.screen.result("sweep", rows)


@app.command()
@with_options("export", "encode")
def export(
    call: Call,
    source: Annotated[
        Path,
        typer.Argument(metavar="EDIT|LATENTS|FRAMES|TRAJECTORY", help="What to show."),
    ],
    source_video: SourceVideo = None,
    with_source: WithSource = False,
    output: Output = None,
) -> None:
    """Write an artifact as a video: edit -> mp4."""
    from cogedit import stages

    settings = call.settings(source)
    exported = stages.export(
        source,
        settings,
        output=output,
        source_video=source_video,
        with_source=with_source,
        run=call.run,
    )
    _print(call, "export", [exported])


@app.command()
@with_options("load", "encode", "invert", "reconstruct", "export", "transformer")
def edit(
    call: Call,
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="A video, or an artifact of it.")],
    prompt: Prompts,
    mask: Mask = None,
    source_video: SourceVideo = None,
    with_source: WithSource = False,
    dry_run: DryRun = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for the videos, or the video for a single prompt. Default: the workspace.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Edit a video from start to finish, reusing what is there: VIDEO -> mp4."""
    from cogedit import stages, tools

    settings = call.settings(video)
    if dry_run:
        from cogedit.stages.edit import check_edit

        check_edit(
            video,
            settings,
            mask=mask,
            output=output,
            source_video=source_video,
            num_prompts=len(prompt),
        )
        found = tools.estimate(video, settings, prompts=prompt, mask=mask, run=call.run)
        show_estimate(call.screen, "edit", found)
        return
    exported = stages.edit(
        video,
        prompt,
        settings,
        mask=mask,
        output=output,
        source_video=source_video,
        with_source=with_source,
        run=call.run,
    )
    _print(call, "edit", exported)


app.command()(batch)
app.command()(compare)


@app.command()
@with_options(without=(*GLOBAL_SETTINGS, "config", "force"))
def inspect(
    call: Call,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="An artifact, or an exported video.")
    ],
) -> None:
    """Show how an artifact or an exported video was made."""
    from cogedit.cli.show import describe

    describe(file, json_output=call.screen.json_output)


def _newest_trajectory(call: Call) -> Path:
    """Find the trajectory that was written last, and say which it is."""
    from cogedit.artifacts import Workspace, newest_in_directory
    from cogedit.config import resolve_settings

    # Not `settings_for`: which model this machine would take is no matter here.
    resolved = resolve_settings(call.flags, config=call.config, environ=os.environ, cwd=Path.cwd())
    workspace = resolved.settings.workspace
    if workspace is not None:
        where, found = str(workspace), Workspace(workspace).newest("trajectory")
    else:
        where, found = "*.cogedit", newest_in_directory(Path(), "trajectory")
    if found is None:
        raise UsageError(
            f"there is no trajectory in {where}",
            hint="make one with `cogedit invert VIDEO`, or name it",
        )
    call.screen.say(f"taking the newest trajectory, {found}")
    return found


def _print(call: Call, command: str, outputs: Sequence[Written[Record] | Exported]) -> None:
    """Print the paths that were written, or one JSON object about them."""
    from cogedit.artifacts import content_key
    from cogedit.stages import Exported, Written

    rows: list[dict[str, object]] = []
    for output in outputs:
        row: dict[str, object] = {"path": str(output.path), "reused": output.reused}
        if isinstance(output, Written):
            row |= {"kind": output.record.kind, "content_key": content_key(output.record)}
        else:
            row |= {"kind": "video"}
        rows.append(row)
        if isinstance(output, Exported) and output.source is not None:
            rows.append({"path": str(output.source), "kind": "source"})
    call.screen.result(command, rows)
