"""The commands of the tools: sweep, batch, compare, report and doctor."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cogedit.cli.arguments import (
    DryRun,
    FirstFrames,
    Mask,
    Prompts,
    Trajectory,
    argument,
    only_first_frame,
    option,
    output_option,
    path_text,
)
from cogedit.cli.options import Call, with_options
from cogedit.errors import BatchError, UsageError
from cogedit.version import __version__
from cogedit.wording import count_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cogedit.tools.batch_driver import Start
    from cogedit.tools.batch_plan import BatchEdit


@with_options("load", "encode", "invert", "reconstruct", "transformer")
def sweep(
    call: Call,
    vary: Annotated[
        list[str],
        option(
            "--vary",
            metavar="NAME=V,V,...",
            text="An option and its values, such as strength=0.25,0.5,1; repeat it for a grid.",
        ),
    ],
    prompt: Prompts = None,
    source: Trajectory = None,
    mask: Mask = None,
    first_frames: FirstFrames = None,
    dry_run: DryRun = False,
    output: Annotated[Path | None, output_option("The contact sheet, a PNG.")] = None,
) -> None:
    """Compare a grid of settings on one contact sheet: trajectory -> png + json.

    Example: cogedit sweep bear.mp4 -p "a panda" --vary guidance-scale=2,4,8
    """
    from cogedit import tools

    first_frame = only_first_frame(first_frames)
    trajectory = source or call.newest("trajectory")
    settings = call.settings(trajectory)
    if dry_run:
        from cogedit.cli.tables import show_estimate
        from cogedit.tools.sweep import check_sheet

        check_sheet(output, inputs=[trajectory, mask, first_frame], run=call.run)
        estimate = tools.estimate(
            trajectory,
            settings,
            prompts=prompt or (),
            vary=vary,
            mask=mask,
            first_frame=first_frame,
            run=call.run,
        )
        show_estimate(call.screen, "sweep", estimate)
        return
    swept = tools.sweep(
        trajectory,
        prompt or (),
        settings,
        vary=vary,
        mask=mask,
        first_frame=first_frame,
        output=output,
        run=call.run,
    )
    rows = [
        {"path": str(swept.sheet), "kind": "picture", "reused": False},
        {"path": str(swept.figures), "kind": "figures", "reused": False},
    ]
    call.screen.result("sweep", rows)


@with_options(
    "load",
    "encode",
    "invert",
    "reconstruct",
    "transformer",
    without=(
        "force",
        "preview",
        "reconstruct.auto_mask",
        "reconstruct.auto_mask_threshold",
        "reconstruct.mask_dilation",
        "reconstruct.mask_keep",
    ),
)
def probe_layers(
    call: Call,
    prompt: Annotated[str, option("--prompt", "-p", text="What the edit shows.")],
    source: Trajectory = None,
    dry_run: DryRun = False,
) -> None:
    """Find the layers in which attention to the source has an effect: trajectory -> table.

    Example: cogedit probe-layers bear.mp4 -p "a panda"
    """
    from cogedit import tools
    from cogedit.cli.tables import cost_text, show_estimate, show_probe

    trajectory = source or call.newest("trajectory")
    settings = call.settings(trajectory)
    # What it says of the clip the run itself says again.
    run = call.run if dry_run else replace(call.run, notify=call.screen.detail)
    estimate = tools.estimate_probe(trajectory, prompt, settings, download=not dry_run, run=run)
    if dry_run:
        show_estimate(call.screen, "probe-layers", estimate)
        return
    for stage in estimate.stages:
        if stage.work.calls:
            call.screen.say(f"{stage.name}: {cost_text(stage)}")
    show_probe(call.screen, tools.probe_layers(trajectory, prompt, settings, run=call.run))


@with_options("load", "encode", "invert", "reconstruct", "export", "transformer")
def batch(
    call: Call,
    edits: Annotated[
        str,
        argument(
            "EDITS.toml|.csv|.jsonl|-",
            "One edit per row: a video, a prompt and any setting; - reads CSV or JSON lines "
            "from standard input.",
            parser=path_text,
        ),
    ],
    results: Annotated[
        Path | None,
        option(
            "--results",
            is_path=True,
            metavar="FILE",
            text="Where each finished edit adds a line. Default: results.jsonl in the --workspace, "
            "or here.",
        ),
    ] = None,
    fail_fast: Annotated[bool, option("--fail-fast", text="Stop at the first failure.")] = False,
    workers: Annotated[
        str | None,
        option(
            "--workers",
            metavar="N|auto",
            text="Make several edits at a time, each in a process with a GPU of its own; auto: one "
            "for each GPU.",
        ),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"],
        option("--engine", text="Where the workers are: local, or ray (a Ray cluster)."),
    ] = "local",
    address: Annotated[
        str | None,
        option(
            "--address",
            metavar="HOST:PORT",
            text="The head of the Ray cluster. Default: the cluster of this machine, or this "
            "machine alone.",
        ),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Make every edit that a file lists: EDITS -> one mp4 each, results.jsonl.

    Example: cogedit batch edits.toml --dry-run
    """
    from cogedit.cli.tables import show_batch_plans
    from cogedit.config import read_batch
    from cogedit.tools.batch import batch
    from cogedit.tools.batch_plan import plan_batch, preview_batch

    start, check = _start_of(workers, engine, address)
    rows = read_batch(edits)
    read = dict.fromkeys(Path(name) for name in (edits, *(row.config for row in rows)) if name)
    run = replace(call.run, inputs=(*call.run.inputs, *read))
    planned = plan_batch(
        rows,
        call.flags_of_all,
        config=call.config,
        flag_names=call.names,
        is_made_here=engine != "ray",
        download=not dry_run,
        run=run,
    )
    if dry_run:
        check(planned)
        plans = preview_batch(planned, is_made_here=engine != "ray", run=run)
        show_batch_plans(call.screen, plans)
        if num_failing := sum(plan.error is not None for plan in plans):
            raise BatchError(f"{num_failing} of {count_of(len(plans), 'edit')} would fail")
        return
    done = batch(planned, results=results, fail_fast=fail_fast, start=start, run=run)
    if call.screen.json_output:
        typer.echo(json.dumps({"command": "batch", "outputs": [asdict(edit) for edit in done]}))
    else:
        call.screen.result("batch", [{"path": edit.path} for edit in done if edit.path is not None])
    if num_failed := sum(edit.status == "failed" for edit in done):
        left = len(planned) - len(done)
        raise BatchError(
            f"{num_failed} of {count_of(len(planned), 'edit')} failed"
            + (f"; not started: {left}" if left else ""),
            hint="run the same command again to retry these; the others are reused",
        )


def _start_of(
    workers: str | None, engine: str, address: str | None
) -> tuple[Start | None, Callable[[Sequence[BatchEdit]], object]]:
    """Choose what starts the workers of a batch, and what refuses edits that they could not make.

    None makes the edits in this process.
    """
    from cogedit.tools.batch_driver import on_gpus
    from cogedit.tools.batch_local import check_local, start_local
    from cogedit.tools.batch_ray import start_ray

    if workers in (None, "auto"):
        number = None
    elif workers.isdecimal() and int(workers) >= 1:
        number = int(workers)
    else:
        raise UsageError(f"--workers is {workers}, expected auto or a number from 1")
    if engine == "ray":
        return partial(start_ray, number=number, address=address), on_gpus
    if address is not None:
        raise UsageError("--address is of a Ray cluster", hint="add --engine ray")
    if workers is None:
        return None, lambda edits: None
    return partial(start_local, number=number), partial(check_local, number=number)


@with_options(
    "export",
    without=(
        "export.audio_track",
        "export.crossfade",
        "export.every_frame",
        "export.size",
        "export.sound",
        "export.splice",
    ),
)
def compare(
    call: Call,
    sources: Annotated[list[Path], argument("ARTIFACT|VIDEO", "Two clips or more.")],
    output: Annotated[Path, output_option("A video, or an image (.png).")],
    layout: Annotated[
        # `cogedit.types.ComparisonLayout`, which would make the help slower.
        Literal["row", "column", "wipe", "sheet"] | None,
        option(
            "--layout",
            text="row, column, wipe (of two), or sheet (several frames, an image). Default: sheet "
            "for an image, otherwise row.",
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        option("--label", text="A caption, once for each. Default: prompts and file names."),
    ] = None,
    shortest: Annotated[
        bool, option("--shortest", text="Cut clips of different length to the shortest.")
    ] = False,
) -> None:
    """Show artifacts and videos side by side: A B [C]... -> mp4 or png.

    Example: cogedit compare bear.mp4 edit-1.mp4 edit-2.mp4 -o row.mp4
    """
    from cogedit import tools
    from cogedit.artifacts import sniff_kind

    is_image = output.suffix.lower() == ".png"
    of_video = ("export.codec", "export.crf", "export.lossless")
    for name in (call.names[key] for key in of_video if is_image and key in call.names):
        call.screen.say(f"{name} changes nothing in an image")
    kinds = {source: sniff_kind(source) for source in sources}
    latent = next((source for source in sources if kinds[source] not in (None, "frames")), None)
    settings = call.settings_without_model() if latent is None else call.settings(latent)
    done = tools.compare(
        sources,
        settings,
        output=output,
        layout=layout,
        labels=label or [],
        shortest=shortest,
        run=call.run,
    )
    kind = "picture" if is_image else "video"
    row = {"path": str(done.path), "reused": done.reused, "kind": kind}
    call.screen.result("compare", [row])


@with_options()
def report(
    call: Call,
    folder: Annotated[
        Path | None,
        argument(
            "WORKSPACE",
            "The folder of the artifacts. Default: that of the newest edit here.",
        ),
    ] = None,
    beside: Annotated[
        bool,
        option("--beside", text="Keep the videos in a folder next to the page, not in it."),
    ] = False,
    output: Annotated[
        Path | None, output_option("The page. Default: report.html in the workspace.")
    ] = None,
) -> None:
    """Compare the edits of a workspace with their source: WORKSPACE -> html page.

    Example: cogedit report bear.cogedit -o report.html
    """
    from cogedit import tools

    settings = call.settings_without_model()  # unless one is named, each edit has its own
    root = folder or settings.workspace
    root = call.newest("edit").parent if root is None else root
    written = tools.report(root, settings, output=output, beside=beside, run=call.run)
    call.screen.result("report", [{"path": str(written.path), "kind": "page", "reused": False}])


@with_options(without=("force",))
def doctor(call: Call) -> None:
    """Check whether this machine can run an edit, and say what is missing.

    Example: cogedit doctor --model zai-org/CogVideoX-5b
    """
    from cogedit.cli.tables import show_diagnosis
    from cogedit.tools.doctor import diagnose

    # Not `call.settings`, which needs the files of the model: here their absence is a finding.
    with call.screen.wait("looking at this machine"):
        diagnosis = diagnose(call.settings_without_model())
    if call.screen.json_output:
        outcome = {"can_edit": diagnosis.exit_code == 0, "exit_code": diagnosis.exit_code}
        found = {"command": "doctor", "cogedit": __version__, **outcome, **asdict(diagnosis)}
        typer.echo(json.dumps(found))
    else:
        show_diagnosis(diagnosis)
    raise typer.Exit(diagnosis.exit_code)
