"""The app and the commands of the stages: parse, call one stage, print what was written.

Stages and tools are imported by the command that runs them: `--help` needs none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cogedit.cli.arguments import (
    DryRun,
    FirstFrames,
    Mask,
    Output,
    Prompts,
    SourceVideo,
    Trajectory,
    Video,
    WithSource,
    argument,
    only_first_frame,
    option,
    output_option,
)
from cogedit.cli.cache import cache_app
from cogedit.cli.configuration import config_app
from cogedit.cli.guide import guide
from cogedit.cli.options import Call, with_options
from cogedit.cli.tool_commands import batch, compare, doctor, probe_layers, report, sweep
from cogedit.cli.usage import App
from cogedit.version import __version__

if TYPE_CHECKING:
    from cogedit.artifacts import Record
    from cogedit.stages import Exported, Written

app = App(
    name="cogedit",
    help="Edit real videos by text with CogVideoX: invert once, edit many times.",
    epilog="Start with `cogedit doctor`, then `cogedit edit VIDEO --prompt TEXT --dry-run`; "
    "`cogedit guide` explains the rest.",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """Edit real videos by text with CogVideoX: invert once, edit many times."""
    if version:
        typer.echo(f"cogedit {__version__}")
        raise typer.Exit


@app.command()
@with_options("load", "encode", "invert", "reconstruct", "export", "transformer")
def edit(
    call: Call,
    video: Annotated[Path, argument("VIDEO", "A video, or an artifact of it.")],
    prompt: Prompts = None,
    mask: Mask = None,
    first_frames: FirstFrames = None,
    source_video: SourceVideo = None,
    with_source: WithSource = False,
    dry_run: DryRun = False,
    output: Annotated[
        str | None,
        output_option(
            "Folder for the videos, or the video for a single prompt. Default: the workspace.",
            keeps_slash=True,
        ),
    ] = None,
) -> None:
    """Edit a video from start to finish, reusing earlier results: VIDEO -> mp4.

    Example: cogedit edit bear.mp4 -p "a polar bear on the ice"

    Example: cogedit edit bear.mp4 -p "a red bear" --source-prompt "a bear" --config recolor

    Example: cogedit edit bear.mp4 --model zai-org/CogVideoX-5b-I2V --first-frame edited.png
    """
    from cogedit import stages
    from cogedit.stages.edit import check_dry_run
    from cogedit.stages.given import check_is_edit

    first_frame = only_first_frame(first_frames)
    check_is_edit(prompt or (), first_frame)
    settings = call.settings(video)
    if dry_run:
        from cogedit import tools
        from cogedit.cli.tables import show_estimate

        check_dry_run(
            video,
            prompt or (),
            settings,
            mask=mask,
            first_frame=first_frame,
            output=output,
            source_video=source_video,
            with_source=with_source,
            run=call.run,
        )
        show_estimate(
            call.screen,
            "edit",
            tools.estimate(
                video,
                settings,
                prompts=prompt or (),
                mask=mask,
                first_frame=first_frame,
                run=call.run,
            ),
        )
        return
    exported = stages.edit(
        video,
        prompt or (),
        settings,
        mask=mask,
        first_frame=first_frame,
        output=output,
        source_video=source_video,
        with_source=with_source,
        run=call.run,
    )
    _print(call, "edit", exported)


app.command()(doctor)
app.command()(guide)


@app.command()
@with_options("load", takes_all=True)
def load(call: Call, video: Video, output: Output = None) -> None:
    """Read a clip of a video: VIDEO -> frames.

    Example: cogedit load bear.mp4 --max-num-frames 25
    """
    from cogedit import stages

    settings = call.settings(video)
    _print(call, "load", [stages.load(video, settings, output=output, run=call.run)])


@app.command()
@with_options("load", takes_all=True)
def frame(
    call: Call,
    source: Annotated[Path, argument("VIDEO|ARTIFACT", "The video, or an artifact of its clip.")],
    output: Annotated[Path, output_option("The picture, a PNG.")],
    at: Annotated[
        str | None,
        option(
            "--at",
            metavar="TIME",
            text="Another time, such as 12.5, 1:02.5 or 300f. Default: where the clip begins.",
            panel="Clip",
        ),
    ] = None,
) -> None:
    """Write the first frame of a clip as the model sees it: VIDEO -> png.

    Example: cogedit frame bear.mp4 --start 3 -o first.png
    """
    from cogedit import stages

    settings = call.settings(source)
    path = stages.save_frame(source, settings, output=output, at=at, run=call.run)
    call.screen.result("frame", [{"path": str(path), "kind": "picture", "reused": False}])


@app.command()
@with_options("load", "encode", takes_all=True)
def encode(
    call: Call,
    source: Annotated[Path, argument("FRAMES|VIDEO", "What to encode.")],
    output: Output = None,
) -> None:
    """Encode a clip with the VAE: frames -> latents.

    Example: cogedit encode bear.mp4
    """
    from cogedit import stages

    settings = call.settings(source)
    _print(call, "encode", [stages.encode(source, settings, output=output, run=call.run)])


@app.command()
@with_options("load", "encode", "invert", "transformer", takes_all=True)
def invert(
    call: Call,
    source: Annotated[Path, argument("LATENTS|FRAMES|VIDEO", "What to invert.")],
    check: Annotated[
        bool,
        option("--check", text="Sample back from the noise and measure the difference."),
    ] = False,
    dry_run: DryRun = False,
    output: Output = None,
) -> None:
    """Invert a clip into noise, keeping every timestep: latents -> trajectory.

    Example: cogedit invert bear.mp4 --check
    """
    from cogedit import stages

    settings = call.settings(source)
    if dry_run:
        from cogedit import tools
        from cogedit.cli.tables import show_estimate

        estimate = tools.estimate(source, settings, output=output, check=check, run=call.run)
        show_estimate(call.screen, "invert", estimate)
        return
    with stages.Session() as session:
        written = stages.invert(source, settings, output=output, run=call.run, session=session)
        if check:
            accuracy = stages.check_inversion(written.path, settings, run=call.run, session=session)
            call.screen.say(
                f"sampled back: {accuracy.psnr:.1f} dB against the VAE's round trip; standard "
                f"deviation of the noise {accuracy.std:.3f} (fresh noise has 1)"
            )
    _print(call, "invert", [written])


@app.command()
@with_options("load", "encode", "invert", "reconstruct", "transformer", takes_all=True)
def reconstruct(
    call: Call,
    prompt: Prompts = None,
    source: Trajectory = None,
    mask: Mask = None,
    first_frames: FirstFrames = None,
    save_trajectory: Annotated[
        bool, option("--save-trajectory", text="Keep every step of the edit.")
    ] = False,
    dry_run: DryRun = False,
    output: Output = None,
) -> None:
    """Denoise a trajectory under new prompts: trajectory -> edits.

    Example: cogedit reconstruct -p "in the snow" -p "in the desert"
    """
    from cogedit import stages
    from cogedit.stages.given import check_is_edit

    first_frame = only_first_frame(first_frames)
    check_is_edit(prompt or (), first_frame)
    trajectory = source or call.newest("trajectory")
    settings = call.settings(trajectory)
    if dry_run:
        from cogedit import tools
        from cogedit.cli.tables import show_estimate

        estimate = tools.estimate(
            trajectory,
            settings,
            prompts=prompt or (),
            save_trajectory=save_trajectory,
            mask=mask,
            first_frame=first_frame,
            output=output,
            run=call.run,
        )
        show_estimate(call.screen, "reconstruct", estimate)
        return
    written = stages.reconstruct(
        trajectory,
        prompt or (),
        settings,
        mask=mask,
        first_frame=first_frame,
        output=output,
        save_trajectory=save_trajectory,
        run=call.run,
    )
    _print(call, "reconstruct", written)


@app.command()
@with_options("export", takes_all=True)
def export(
    call: Call,
    source: Annotated[
        Path,
        argument("EDIT|LATENTS|FRAMES|TRAJECTORY", "What to show."),
    ],
    source_video: SourceVideo = None,
    with_source: WithSource = False,
    output: Output = None,
) -> None:
    """Write an artifact as a video: edit -> mp4.

    Example: cogedit export EDIT --size source -o bear.mkv --codec ffv1
    """
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
@with_options(settings=False, without=("config", "force"))
def inspect(
    call: Call,
    file: Annotated[Path, argument("FILE", "An artifact, or an exported video.")],
) -> None:
    """Show how an artifact or an exported video was made.

    Example: cogedit inspect edit.mp4
    """
    from cogedit.cli.show import show_file

    show_file(file, json_output=call.screen.json_output)


for command in (sweep, probe_layers, batch, compare, report):
    app.command()(command)
app.add_typer(config_app)
app.add_typer(cache_app)


def _print(call: Call, command: str, outputs: Sequence[Written[Record] | Exported]) -> None:
    """Print the paths that were written, or one JSON object about them."""
    from cogedit.artifacts import content_key
    from cogedit.stages import Exported

    rows: list[dict[str, object]] = []
    for output in outputs:
        row: dict[str, object] = {"path": str(output.path), "reused": output.reused}
        if isinstance(output, Exported):
            rows.append(row | {"kind": "video"})
            if output.source is not None:
                rows.append({"path": str(output.source), "kind": "source"})
        else:
            key = content_key(output.record)
            rows.append(row | {"kind": output.record.kind, "content_key": key})
    call.screen.result(command, rows)
