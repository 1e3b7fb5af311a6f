"""Which model made an artifact, and what was added to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cogedit.schema import later
from cogedit.sources import Digest
from cogedit.types import AttentionBackend, DType, Weights

DeviceType = Literal["cpu", "cuda", "mps"]


@dataclass(frozen=True)
class LoraRecord:
    """A LoRA that was added to the transformer."""

    name: str  # of its file: provenance, and in no key
    digest: Digest
    scale: float


@dataclass(frozen=True)
class ModelRecord:
    """Which model made an artifact, and where.

    What it and its files are called, the device and torch's version are provenance: they say where
    the numbers come from and are in no content key. Devices and versions agree to rounding.
    """

    id: str  # Hub id, or the folder's name for a local model (never an absolute path)
    revision: str | None  # resolved commit of a Hub model
    digest: Digest  # of its configuration and weights: this is which model it is
    dtype: DType  # that it computed in
    attention_backend: AttentionBackend | None = None  # one that computes in fewer bits than that
    weights: Weights | None = None  # type of the stored weights where it is not `dtype`
    device: DeviceType | None = later(None)  # that it computed on; None before it has
    torch: str | None = later(None)  # version; None in records of cogedit 0.1.0, whose keys differ
    transformer: str | None = later(None)  # name of the file that it is in, if that is its own
    vae: str | None = later(None)  # likewise
    lora: tuple[LoraRecord, ...] = later(())  # in the order in which they were added

    @property
    def and_files(self) -> str:
        """Its files of their own and LoRAs, as they follow its name; empty without any."""
        files = [file for file in (self.transformer, self.vae) if file is not None]
        files += [f"{lora.name} at {lora.scale:g}" for lora in self.lora]
        return "".join(f" with {file}" for file in files)
