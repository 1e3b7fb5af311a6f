"""Prompt embeddings of a session: in memory, and cached on disk for every later run."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from cogedit.artifacts.embeds import (
    EmbedsRecord,
    default_cache,
    embeds_path,
    find_embeds,
    write_embeds,
)
from cogedit.config import Settings
from cogedit.errors import ArtifactDamaged, StorageError, UsageError
from cogedit.models.checkpoint import Checkpoint
from cogedit.stages.model import dtype_for
from cogedit.stages.run import Run
from cogedit.wording import count_of

if TYPE_CHECKING:
    from torch import Tensor

    from cogedit.models.prompts import PromptEmbeds

    Embed = Callable[[Sequence[str]], PromptEmbeds]

_SHOWN_WORDS = 8

_TOGETHER = 64
"""Prompts that are embedded before their embeddings leave the device."""


def check_text(text: str) -> None:
    """Refuse a prompt that is not UTF-8, such as bytes of another encoding on the command line."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the prompt {text!r} is not UTF-8", hint="set the locale") from error


class PromptCache:
    """Prompt embeddings [1, L, D] by record: of few prompts in memory, of all on disk."""

    def __init__(self) -> None:
        self._embeds: dict[str, Tensor] = {}
        self._on_disk: set[str] = set()
        self._reported: set[str] = set()

    def __getitem__(self, record: EmbedsRecord) -> Tensor:
        return self._embeds[record.key]

    def clear(self) -> None:
        """Forget what is in memory."""
        self._embeds.clear()
        self._on_disk.clear()
        self._reported.clear()

    def is_there(self, record: EmbedsRecord, folder: Path | None) -> bool:
        """Whether an embedding is in memory or, as far as a file's name tells, on disk."""
        with suppress(OSError):  # it may not be looked for
            path = embeds_path(folder or default_cache(), record)
            return record.key in self._embeds or path.exists()
        return False

    def has(self, record: EmbedsRecord, folder: Path | None, run: Run) -> bool:
        """Whether an embedding is in memory, or on disk, from where it is read."""
        if record.key in self._embeds:
            return True
        try:
            cached = find_embeds(folder or default_cache(), record)
        except (ArtifactDamaged, StorageError) as error:
            run.notify(f"{error.message}; the prompt is embedded again")
            return False
        if cached is None:
            return False
        known, self._embeds[record.key] = cached
        self._on_disk.add(record.key)
        self._report(known, run)
        return True

    def add(
        self,
        records: Sequence[EmbedsRecord],
        later: Sequence[EmbedsRecord],
        embed: Embed,
        folder: Path | None,
        run: Run,
    ) -> None:
        """Embed prompts, and while the model is loaded those to come, which stay on disk alone.

        Some at a time: the embeddings of a long list, 2 MB each, would fill the device. Processes
        that share a list take its parts in orders of their own, and leave out what another has
        made. Where the disk takes none, the rest waits for its turn, or it would fill memory.
        """
        room = max(0, _TOGETHER - len(records))
        for part in _parts([*records, *later[:room]]):
            self._embed(part, embed, folder, run)
        parts = _parts(later[room:])
        random.shuffle(parts)
        for part in parts:
            missing = [record for record in part if not self.is_there(record, folder)]
            self._embed(missing, embed, folder, run)
            made = {record.key for record in missing}
            for key in made & self._on_disk:
                del self._embeds[key]
            if not made <= self._on_disk:
                break

    def _embed(
        self, records: Sequence[EmbedsRecord], embed: Embed, folder: Path | None, run: Run
    ) -> None:
        if not records:
            return
        made = embed([record.prompt for record in records])
        for record, embeds, truncated, words in zip(
            records, made.embeds, made.truncated, made.unknown, strict=True
        ):
            known = replace(record, truncated=truncated, unknown=words)
            self._keep(known, embeds, folder, run)

    def _keep(self, record: EmbedsRecord, embeds: Tensor, folder: Path | None, run: Run) -> None:
        self._embeds[record.key] = embeds.cpu()
        self._report(record, run)
        try:
            path = write_embeds(folder or default_cache(), embeds, record)
        except StorageError as error:  # only the next run is slower for it
            self._on_disk.discard(record.key)
            run.notify(f"the embedding of the prompt is not cached: {error.message}")
        else:
            self._on_disk.add(record.key)
            run.detail(f"wrote {path} (the embedding of {_short(record.prompt)!r})")

    def keep_alone(self, records: Iterable[EmbedsRecord]) -> None:
        """Forget all others that are on disk: those of a long list would fill memory."""
        kept = {record.key for record in records}
        for key in (self._embeds.keys() - kept) & self._on_disk:
            del self._embeds[key]

    def _report(self, record: EmbedsRecord, run: Run) -> None:
        """Say once what of a prompt the model cannot read."""
        if record.key in self._reported:
            return
        self._reported.add(record.key)
        if record.truncated:
            run.notify(
                f"the prompt {_short(record.prompt)!r} is {count_of(record.truncated, 'token')} "
                f"too long for this model ({record.max_text_seq_length}); its end is left out"
            )
        if record.unknown:
            words = ", ".join(repr(_short(word)) for word in record.unknown[:_SHOWN_WORDS])
            more = ", ..." if len(record.unknown) > _SHOWN_WORDS else ""
            run.notify(
                f"words of the prompt {_short(record.prompt)!r} are unknown to the tokenizer and "
                f"will be ignored: {words}{more}"
            )


def _parts(records: Sequence[EmbedsRecord]) -> list[Sequence[EmbedsRecord]]:
    return [records[first : first + _TOGETHER] for first in range(0, len(records), _TOGETHER)]


def embeds_record(
    prompt: str, checkpoint: Checkpoint, device_type: str, settings: Settings
) -> EmbedsRecord:
    """Describe the embedding of a prompt before it is known."""
    return EmbedsRecord(
        prompt=prompt,
        model=checkpoint.digest,
        dtype=dtype_for(settings),
        device=device_type,
        max_text_seq_length=checkpoint.geometry.max_text_seq_length,
        library=f"transformers {version('transformers')}",
    )


def _short(text: str, length: int = 60) -> str:
    return text if len(text) <= length else f"{text[:length]}..."
