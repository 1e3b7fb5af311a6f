"""Shared by all stages: progress reporting, output paths, and the reuse of artifacts."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar, cast

from cogedit.artifacts import (
    DeviceType,
    FramesRecord,
    Pieces,
    Record,
    Unfinished,
    Workspace,
    chain_of,
    content_key,
    default_workspace,
    frames_record,
    in_use,
    keep_in_use,
    read_record,
    show_size,
    sniff_kind,
    verify_artifact,
    write_artifact,
)
from cogedit.cancellation import Cancellation
from cogedit.config import CONFIG_FILE, Settings
from cogedit.disk import Over
from cogedit.errors import (
    ArtifactDamaged,
    ArtifactError,
    LeaseLost,
    StorageError,
    UsageError,
    memory_expected,
)
from cogedit.media.images import are_images, folder_of
from cogedit.places import find_elsewhere
from cogedit.progress import RGBPicture, ShowStep, Step, WindowInfo
from cogedit.stages.replacing import is_of_a_model, is_replaced

if TYPE_CHECKING:
    from torch import Tensor

    Tensors = Mapping[str, Tensor | Pieces]

RecordT = TypeVar("RecordT", bound=Record)
RecordT_co = TypeVar("RecordT_co", bound=Record, covariant=True)

Progress = Callable[[str, int], AbstractContextManager[ShowStep]]
"""Called with what is done ("inverting") and its number of steps; yields what each step calls."""


@contextmanager
def _no_progress(doing: str, total: int) -> Iterator[ShowStep]:
    yield lambda step: None


class Wait(Protocol):
    """Shows what is being waited for while a block runs."""

    def __call__(self, doing: str, /, *, is_said: bool = False) -> AbstractContextManager[None]:
        """`is_said`: it is worth a line where no terminal shows that time passes."""


def _no_wait(doing: str, /, *, is_said: bool = False) -> AbstractContextManager[None]:
    return contextlib.nullcontext()


@dataclass(frozen=True)
class Run:
    """How a stage runs and what it reports to; nothing in here changes a result.

    Attributes:
        force: Recompute the output of this stage even where it exists, and replace another file.
            Earlier stages are still reused.
        notify: Given one sentence at a time, for people.
        detail: Given what only some people want to know.
        progress: Shows the steps of a long loop.
        wait: Shows what is being waited for, where there are no steps.
        preview: Shown images of the edits after each of their steps; None where nobody looks.
        cancellation: Lets a signal, or another thread, stop between two steps or stages.
        is_earlier: Whether this is a stage before the one that was asked for.
        inputs: More files that the run reads, such as a batch file; no output replaces one.
        claims: Outputs that no other command writes meanwhile (`claim`).
    """

    force: bool = False
    notify: Callable[[str], None] = lambda text: None
    detail: Callable[[str], None] = lambda text: None
    progress: Progress = _no_progress
    wait: Wait = _no_wait
    preview: Callable[[RGBPicture], None] | None = None
    cancellation: Cancellation = field(default_factory=Cancellation)
    is_earlier: bool = False
    inputs: tuple[Path, ...] = ()
    claims: frozenset[Path] = frozenset()

    @contextmanager
    def stoppable(self, doing: str, total: int) -> Iterator[ShowStep]:
        """Show a loop of which nothing is kept; it stops after a step if that was requested."""

        def show(step: Step) -> None:
            on_step(step)
            if step.index + 1 < total and not isinstance(step, WindowInfo):
                where = f"while {doing}, after step {step.index + 1} of {total}"
                self.cancellation.check(where, hint="the same command begins it again")

        with self.progress(doing, total) as on_step:
            yield show

    @contextmanager
    def counting(self, doing: str, total: int) -> Iterator[Callable[[], None]]:
        """`stoppable` without timesteps: what this yields is called after each step."""
        numbers = count()
        with self.stoppable(doing, total) as on_step:
            yield lambda: on_step(Step(next(numbers), total))

    def while_waiting(self, text: str) -> Callable[[], None]:
        """What to do at every look at what another process holds.

        It says once what is waited for, and stops where a stop was requested.
        """
        say = cache(partial(self.notify, text))

        def look() -> None:
            say()
            self.cancellation.check("while it waited for another process")

        return look

    @property
    def earlier(self) -> Run:
        """How the stages before the one that was asked for run."""
        return replace(self, force=False, is_earlier=True)


@dataclass(frozen=True)
class Written(Generic[RecordT_co]):
    """An artifact on disk: its file, how it was made, and whether it existed before."""

    path: Path
    record: RecordT_co
    reused: bool


@dataclass(frozen=True)
class Exported:
    """A video on disk, or a folder of images, and the source's clip beside it if it was wanted."""

    path: Path
    reused: bool
    source: Path | None = None


def workspace_for(source: Path, settings: Settings) -> Workspace:
    """Choose where the artifacts made from a video or an artifact go.

    `settings.workspace` if it is set; else the artifact's own folder if it lies there under its own
    name; else `<video stem>.cogedit` in the current directory.
    """
    if settings.workspace is not None:
        return Workspace(settings.workspace)
    if sniff_kind(source) is None:
        return Workspace(default_workspace(folder_of(source) if are_images(source) else source))
    record, beside = read_record(source), Workspace(source.parent)
    if beside.path_for(record).name == source.name:
        return beside
    return Workspace(default_workspace(Path(frames_record(record).source.name)))


def find_or_make(
    record: RecordT,
    make: Callable[[], Tensors],
    *,
    output: Path | None,
    workspace: Workspace,
    run: Run,
    device: str = "auto",
) -> Written[RecordT]:
    """Return the artifact of a record: the one that exists, or a new one of the tensors of `make`.

    It lies at `output`, or without one at its place in the workspace. A new one of a model says on
    which `device` it was made.

    Raises:
        UsageError: `output` holds something else, and `run.force` is off.
        StorageError: The place cannot be written; found out before anything is computed.
    """
    path = place_of(record, output=output, workspace=workspace)
    unfinished = Unfinished.of(path.parent, record.kind, [content_key(record)])
    reused = partial(_reused, record, output=output, workspace=workspace, run=run)
    if output is None:
        workspace.create()
    keep_in_use(path.parent)
    if (existing := reused()) is not None:
        unfinished.clear()  # a process that was killed may have left its steps
        return existing
    check_output(path, inputs=map(workspace.path_for, chain_of(record)[:-1]), run=run)

    waiting = run.while_waiting(is_made_elsewhere(path))
    while True:
        try:
            with in_use(path.parent), unfinished.alone(waiting=waiting):
                if (written := reused()) is None:  # else another process made it meanwhile
                    try:
                        written = _make(
                            record, make, output=output, workspace=workspace, run=run, device=device
                        )
                    except StorageError:
                        # A process that took it over may have finished it, and its steps went.
                        if (written := reused()) is None:
                            raise
                unfinished.remove_steps()
                return written
        except LeaseLost:  # the process that goes on is ahead of this one
            continue


def _reused(
    record: RecordT, *, output: Path | None, workspace: Workspace, run: Run
) -> Written[RecordT] | None:
    """Return the artifact of a record if it exists and is not to be made anew."""
    path = place_of(record, output=output, workspace=workspace)
    with run.wait(f"checking {path.name}"):
        if run.force or find(record, output=output, workspace=workspace) is None:
            return None
    # Of an earlier stage, --force would not recompute it.
    run.notify(f"reused {path}" if run.is_earlier else f"reused {path} (--force recomputes it)")
    return Written(path, cast(RecordT, read_record(path)), reused=True)


def _make(
    record: RecordT,
    make: Callable[[], Tensors],
    *,
    output: Path | None,
    workspace: Workspace,
    run: Run,
    device: str,
) -> Written[RecordT]:
    """Make an artifact where no other process does, and write it."""
    path = place_of(record, output=output, workspace=workspace)
    run.cancellation.check(f"before {path.name} was begun")
    scratch = Unfinished.of(path.parent, record.kind, [content_key(record)]).root
    with run.wait("starting PyTorch"):
        import torch  # noqa: F401  (seconds, the first time)
    with memory_expected(f"the {record.kind}"):
        tensors = make()
        record = _made_on(record, device)
        over: Over = "anything" if output is None or run.force else None
        try:
            with run.wait(f"writing {path.name}"):
                written = _write(path, tensors, record, scratch=scratch, over=over)
        except UsageError as error:
            if not isinstance(error.__cause__, FileExistsError):
                raise
            return _taken(path, tensors, record, workspace=workspace, run=run)
    run.notify(f"wrote {path} ({show_size(path.stat().st_size)})")
    return Written(path, written, reused=False)


def is_made_elsewhere(path: Path) -> str:
    """Say what a run is waiting for."""
    return f"another process is making {path}; waiting for it"


def _made_on(record: RecordT, device: str) -> RecordT:
    """Add to a record of a model on what kind of device it has computed."""
    made: Record = record
    if isinstance(made, FramesRecord) or made.model.torch is None:
        return record
    from cogedit.models.device import resolve_device

    used = cast("DeviceType", resolve_device(device).type)
    return cast(RecordT, replace(made, model=replace(made.model, device=used)))


def place_of(record: Record, *, output: Path | None, workspace: Workspace) -> Path:
    """Return where an artifact goes: `output`, or its place in the workspace."""
    return workspace.path_for(record) if output is None else output


def _write(path: Path, tensors: Tensors, record: RecordT, *, scratch: Path, over: Over) -> RecordT:
    """Write an artifact by way of the folder in which it is made."""
    try:
        return write_artifact(path, tensors, record, scratch=scratch, over=over)
    except StorageError as error:
        # A process that took it over may finish the same artifact and remove the folder meanwhile.
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        return write_artifact(path, tensors, record, over=over)


def _taken(
    path: Path, tensors: Tensors, record: RecordT, *, workspace: Workspace, run: Run
) -> Written[RecordT]:
    """Return what another process wrote to an output meanwhile, if it is this very artifact.

    What was made is kept in the workspace otherwise, and the UsageError says where.
    """
    with contextlib.suppress(ArtifactError, UsageError):
        if (existing := _reused(record, output=path, workspace=workspace, run=run)) is not None:
            return existing
    workspace.create()
    kept = workspace.path_for(record)
    write_artifact(kept, tensors, record)
    Unfinished.of(path.parent, record.kind, [content_key(record)]).remove_steps()
    raise UsageError(
        f"{path} was written by another process meanwhile, and is not replaced",
        hint=f"what this run has made is {kept}",
    )


def find(record: Record, *, output: Path | None, workspace: Workspace) -> Path | None:
    """Return the artifact of a record if it exists, in `output` or in the workspace."""
    if output is None:
        return workspace.find(record)
    if not output.exists():
        return None
    hint = "choose another -o, or replace it with --force"
    try:
        existing = verify_artifact(output)
    except ArtifactDamaged as error:
        raise ArtifactDamaged(error.message, hint=hint) from error
    except ArtifactError as error:
        raise UsageError(f"{output} exists and is no artifact of this run", hint=hint) from error
    if content_key(existing) != content_key(record):
        raise UsageError(f"{output} exists and was made with other settings", hint=hint)
    return output


def check_output(
    output: Path | None, *, inputs: Iterable[Path | str | None], run: Run, is_folder: bool = False
) -> None:
    """Make sure, before any stage runs, that a result can be written where the user wants it.

    Every command with an output asks here. Not even `force` replaces a file that the run reads:
    one of `inputs` or of `run.inputs`, or the configuration.
    """
    if output is None:
        return
    check_is_here(output)
    check_writable(output, is_folder=is_folder)
    read: dict[str, Iterable[Path | str | None]] = {
        "what the run starts from": inputs,
        "a file that the run reads": (*run.inputs, CONFIG_FILE),
    }
    if output.is_file() and is_of_a_model(output.absolute().parent):
        raise UsageError(f"{output} is a file of a model", hint="choose another -o")
    for what, files in read.items():
        if any(name is not None and is_replaced(Path(name), output) for name in files):
            raise UsageError(f"{output} is {what}", hint="choose another -o")
    if is_folder:
        from cogedit.media.png import check_image_folder  # brings NumPy

        check_image_folder(output)


def check_absent(output: Path, run: Run) -> None:
    """Refuse to replace an output without force, where no artifact tells whether it is the same."""
    if output.exists() and not run.force:
        raise UsageError(f"{output} exists", hint="choose another -o, or replace it with --force")


def check_is_here(output: Path) -> None:
    """Raise `UsageError` for a URL or a path of Windows, of which a disk here makes odd names."""
    named = find_elsewhere(output.name)
    elsewhere = named if output.parent.is_dir() else named or find_elsewhere(str(output))
    if elsewhere is not None and not output.exists():
        raise UsageError(f"-o: {elsewhere.message}", hint="name a file or folder here")


def check_writable(path: Path, *, is_folder: bool = False) -> None:
    """Raise `StorageError` unless a file, or a folder, can be written at `path`."""
    folder = path.parent
    if not folder.is_dir():
        raise StorageError(
            f"cannot write {path}: there is no folder {folder}",
            hint=f"make it: mkdir -p {shlex.quote(str(folder))}",
        )
    if path.is_dir() and not is_folder:
        raise StorageError(f"cannot write {path}: it is a folder", hint="choose another -o")
    if os.path.lexists(path) and not path.is_file() and not path.is_dir():
        raise StorageError(f"cannot write {path}: it is no regular file", hint="choose another -o")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError(f"cannot write {path}: permission denied", hint="choose another -o")
