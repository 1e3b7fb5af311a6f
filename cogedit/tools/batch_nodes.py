"""What every machine of a cluster must have before a batch runs on it, and how it shows that."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cogedit.artifacts.atomic import storage_error
from cogedit.disk import nearest_folder
from cogedit.errors import CogeditError, ModelError, StorageError
from cogedit.models.checkpoint import find_checkpoint, looked_up_once
from cogedit.models.lora import find_lora
from cogedit.models.single_file import Files
from cogedit.stages.edit import names_video
from cogedit.stages.model import checkpoint_for
from cogedit.tools.batch_plan import BatchEdit

_ATTEMPTS = 10
"""Half seconds until a file that another machine wrote has to be seen."""


@dataclass(frozen=True)
class Needed:
    """What a machine must have.

    Attributes:
        folder: The current directory of the batch.
        nonces: Files that were written for this, and what is in them.
        videos: Videos, masks, first frames and LoRAs, and their sizes.
        models: Name, revision, files of its own and digest of each model.
        loras: File and digest of each LoRA.
    """

    folder: str
    nonces: tuple[tuple[str, str], ...]
    videos: tuple[tuple[str, int], ...]
    models: tuple[tuple[str, str | None, Files, str], ...]
    loras: tuple[tuple[str, str], ...] = ()


@contextmanager
def needed_for(edits: Sequence[BatchEdit]) -> Iterator[Needed]:
    """Describe what edits need, with nonce files where they write, which go with the block."""
    here = Path.cwd()
    written = {here}
    for edit in edits:
        written.add(edit.settings.workspace or here)
        if edit.output is not None:
            place = Path(edit.output)
            written.add(place.parent if names_video(edit.output) else place)
    name = f".cogedit-{secrets.token_hex(8)}.nonce"
    places = set(map(nearest_folder, written))
    nonces = {place / name: secrets.token_hex(16) for place in places}
    read = {path.absolute() for edit in edits for path in edit.inputs}
    with looked_up_once():
        models = {
            (
                edit.settings.model,
                edit.settings.revision,
                tuple((part, path.absolute()) for part, path in edit.settings.files),
                checkpoint_for(edit.settings, download=False).digest,
            )
            for edit in edits
        }
    files = {lora.path.absolute() for edit in edits for lora in edit.settings.loras}
    loras = {(str(path), find_lora(path).digest) for path in files}
    try:
        for path, text in nonces.items():
            try:
                path.write_text(text)
            except OSError as error:
                raise storage_error(path, error, "write") from error
        yield Needed(
            str(here),
            tuple((str(path), text) for path, text in nonces.items()),
            tuple((str(path), _size(path)) for path in sorted(read) if path.exists()),
            tuple(sorted(models, key=str)),
            tuple(sorted(loras)),
        )
    finally:
        for path in nonces:
            with suppress(OSError):
                path.unlink()


def missing_here(needed: Needed) -> list[CogeditError]:
    """Return what this machine does not have of what is needed."""
    missing: list[CogeditError] = []
    unseen = [str(Path(path).parent) for path, text in needed.nonces if not _reads(path, text)]
    unseen += [path for path, size in needed.videos if not _has_size(path, size)]
    if unseen:
        more = f" and {len(unseen) - 1} more" if len(unseen) > 1 else ""
        hint = f"mount the disk with {Path(unseen[0])} there, by the same path"
        missing.append(StorageError(f"does not see {unseen[0]}{more}", hint=hint))
    with suppress(OSError):
        os.chdir(needed.folder)
    for name, revision, files, digest in needed.models:
        try:
            found = find_checkpoint(name, revision, files=files, download=False).digest
        except CogeditError as error:
            missing.append(ModelError(f"has no {name}: {error.message}", hint=error.hint))
            continue
        if found != digest:
            label = f"another {name} ({found[:12]}, expected {digest[:12]})"
            missing.append(ModelError(f"has {label}", hint="name its --revision"))
    for path, digest in needed.loras:
        try:
            found = find_lora(Path(path)).digest
        except CogeditError as error:
            missing.append(ModelError(f"has no LoRA {path}: {error.message}", hint=error.hint))
            continue
        if found != digest:
            missing.append(ModelError(f"has another LoRA {path}", hint="copy it there again"))
    return missing


def _size(path: Path) -> int:
    return 0 if path.is_dir() else path.stat().st_size


def _has_size(path: str, size: int) -> bool:
    try:
        return _size(Path(path)) == size
    except OSError:
        return False


def _reads(path: str, text: str) -> bool:
    for attempt in range(_ATTEMPTS):
        with suppress(OSError):
            return Path(path).read_text() == text
        if attempt < _ATTEMPTS - 1:
            time.sleep(0.5)
    return False
