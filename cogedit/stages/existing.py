"""Which artifacts of a run exist already, and which were removed and need not be made again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cogedit.artifacts import (
    EditRecord,
    FramesRecord,
    LatentsRecord,
    Record,
    TrajectoryRecord,
    Workspace,
    chain_of,
    read_record,
    sniff_kind,
)
from cogedit.config import Settings
from cogedit.models.checkpoint import Checkpoint
from cogedit.stages.encode import latents_record
from cogedit.stages.invert import trajectory_record
from cogedit.stages.load import choose_clip
from cogedit.stages.model import check_same_model
from cogedit.stages.run import Run

Suffices = Callable[[TrajectoryRecord], bool]
"""Whether all that is wanted of a trajectory exists, so that its file need not."""


@dataclass(frozen=True)
class Link:
    """An artifact of a run: its record, and a file that stands for it, None where there is none."""

    record: Record
    path: Path | None


def follow(
    source: Path,
    settings: Settings,
    checkpoint: Checkpoint,
    *,
    workspace: Workspace,
    run: Run,
    suffices: Suffices | None = None,
    output: Path | None = None,
) -> tuple[Link, ...]:
    """Return the artifacts of a run from the clip on, as far as they need not be computed.

    A content key holds the digests of the artifacts before, which only files tell. But each file
    carries the records of all that it was made from. So what exists makes up for what was removed
    before it, and the edits that are wanted make up for their trajectory.

    It is not known that a clip was removed which decord could not read to its end and ffmpeg read
    instead: that shows while it is read.

    Args:
        source: What the run starts from.
        settings: All tables.
        checkpoint: That of the model.
        workspace: Where the run's artifacts are.
        run: How to run.
        suffices: None is never: the trajectory itself is needed.
        output: Another file that may carry records.

    Returns:
        The last one has a file or suffices; where there is nothing, the clip without tensors.

    Raises:
        CogeditError: As `load`, or an artifact is damaged.
    """

    def onwards(links: tuple[Link, ...]) -> Iterator[tuple[Link, ...]]:
        """Yield the ways to go on from some links, the furthest first."""
        last = links[-1].record
        following: Record | None = None
        if isinstance(last, FramesRecord):
            following = latents_record(last, checkpoint, settings=settings)
        elif isinstance(last, LatentsRecord):
            following = trajectory_record(last, checkpoint, settings=settings)
        if following is not None:
            for link in _known(following, workspace, output):
                yield from onwards((*links, link))
        yield links

    if sniff_kind(source) is None:
        clip = choose_clip(source, settings, run=run).record
        furthest: tuple[Link, ...] = (Link(clip, None),)
        begun = _known(clip, workspace, output)
        ways = itertools.chain.from_iterable(onwards((link,)) for link in begun)
    else:
        given = read_record(source, ("frames", "latents", "trajectory"))
        if isinstance(given, LatentsRecord | TrajectoryRecord):
            check_same_model(str(source), given, checkpoint)
        furthest = tuple(Link(record, source) for record in chain_of(given))
        ways = itertools.chain(onwards(furthest))
    for way in ways:
        last = way[-1]
        if isinstance(last.record, TrajectoryRecord) and (
            last.path is not None if suffices is None else suffices(last.record)
        ):
            return way
        if last.path is not None and (furthest[-1].path is None or len(way) > len(furthest)):
            furthest = way
    return furthest


def _known(record: Record, workspace: Workspace, output: Path | None) -> Iterator[Link]:
    """Yield an artifact with its tensors' digests: as it is here, and as it was before."""
    path = workspace.find(workspace.as_kept(record))
    here = None if path is None else read_record(path)
    if here is not None:
        yield Link(here, path)
    for one in workspace.recall(record, output):
        if here is None or one.tensors != here.tensors:
            yield Link(one, None)


def all_exist(
    edits: Iterable[EditRecord], workspace: Workspace, output: Path | None = None
) -> bool:
    """Whether every one of some edits has a file, without a look into it."""
    return all(
        workspace.holds(workspace.as_kept(edit, output=output), output=output) for edit in edits
    )
