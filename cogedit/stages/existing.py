"""Which artifacts of a run exist already, and which were removed and need not be made again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cogedit.artifacts import (
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
from cogedit.stages.inversion_record import trajectory_record
from cogedit.stages.load import choose_clip
from cogedit.stages.model import check_same_model
from cogedit.stages.run import Run

Wanted = Callable[[TrajectoryRecord], Iterable[Record]]
"""The artifacts that are wanted of a trajectory, such as its edits."""


@dataclass(frozen=True)
class Link:
    """An artifact of a run: its record, and a file that stands for it, None where there is none."""

    record: Record
    path: Path | None


@dataclass(frozen=True)
class Found:
    """What exists of a run.

    Attributes:
        links: Its artifacts from the clip on, as far as they need not be computed; where there is
            nothing, the clip without tensors.
        is_complete: Whether all that is wanted exists, and is not to be made anew: then the last
            link is the trajectory, and the run needs no device, kernel or package.
    """

    links: tuple[Link, ...]
    is_complete: bool


def follow(
    source: Path,
    settings: Settings,
    checkpoint: Checkpoint,
    *,
    wanted: Wanted,
    needs_file: bool = False,
    workspace: Workspace,
    run: Run,
    output: Path | None = None,
) -> Found:
    """Find the artifacts of a run from the clip on, as far as they need not be computed.

    A content key holds the digests of the artifacts before, which only files tell. But each file
    carries the records of all that it was made from. So what exists makes up for what was removed
    before it, and what is wanted of a trajectory makes up for that.

    It is not known that a clip was removed which decord could not read to its end and ffmpeg read
    instead: that shows while it is read.

    Args:
        source: What the run starts from.
        settings: All tables.
        checkpoint: That of the model.
        wanted: What the run is to make.
        needs_file: Whether it needs the trajectory beside that.
        workspace: Where the run's artifacts are.
        run: How to run; by force nothing that is wanted counts as there.
        output: Where what is wanted goes; None is the workspace.

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
        if (
            isinstance(last.record, TrajectoryRecord)
            and not run.force
            and (last.path is not None or not needs_file)
            and _all_exist(wanted(last.record), workspace, output)
        ):
            return Found(way, is_complete=True)
        if last.path is not None and (furthest[-1].path is None or len(way) > len(furthest)):
            furthest = way
    return Found(furthest, is_complete=False)


def _known(record: Record, workspace: Workspace, output: Path | None) -> Iterator[Link]:
    """Yield an artifact with its tensors' digests: as it is here, and as it was before."""
    path = workspace.find(workspace.as_kept(record))
    here = None if path is None else read_record(path)
    if here is not None:
        yield Link(here, path)
    for one in workspace.recall(record, output):
        if here is None or one.tensors != here.tensors:
            yield Link(one, None)


def _all_exist(records: Iterable[Record], workspace: Workspace, output: Path | None) -> bool:
    """Whether every one of some artifacts has a file, without a look into it."""
    return all(
        workspace.holds(workspace.as_kept(one, output=output), output=output) for one in records
    )
