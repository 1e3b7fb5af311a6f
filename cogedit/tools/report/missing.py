"""Why a page lacks figures: which files they need, and the commands that make these again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cogedit.artifacts import FramesRecord, Record, TrajectoryRecord, Workspace, content_key
from cogedit.config import Settings
from cogedit.stages.again import encode_again, invert_again, load_again
from cogedit.stages.pass_times import FILE, RunNote
from cogedit.wording import count_of


def without_frames(frames: FramesRecord, workspace: Workspace) -> str:
    """Say what needs the frames of a clip."""
    figures = "PSNR and SSIM of the VAE are"
    return _left_out(figures, frames, workspace, load_again(frames, workspace))


def without_latents(inversion: TrajectoryRecord, workspace: Workspace, settings: Settings) -> str:
    """Say what needs the latents of a clip, where no trajectory holds them either."""
    again = encode_again(inversion.latents, workspace, settings)
    return _left_out("PSNR, SSIM and warp error are", inversion.latents, workspace, again)


def without_trajectory(
    inversion: TrajectoryRecord, workspace: Workspace, settings: Settings
) -> str:
    """Say what needs a trajectory."""
    again = invert_again(inversion, workspace, settings)
    return _left_out("the noise's standard deviation is", inversion, workspace, again)


def without_notes(
    notes: Mapping[str, RunNote], edits: Sequence[Record], inversions: Sequence[Record]
) -> Iterator[str]:
    """Say of how many artifacts nobody noted the time; nothing makes that again."""
    unknown = [
        count_of(count, noun)
        for noun, made in (("edit", edits), ("inversion", inversions))
        if (count := sum(content_key(record) not in notes for record in made))
    ]
    if unknown:
        yield (
            f"time and residual of {' and '.join(unknown)} are left out for lack of lines in "
            f"{FILE}: a run writes them when it makes the file"
        )


def _left_out(figures: str, needed: Record, workspace: Workspace, again: str) -> str:
    path = workspace.path_for(needed)
    return f"{figures} left out for lack of {path.name}: make it again with {again}"
