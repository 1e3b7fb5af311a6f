"""One small chain of artifacts, from a clip to an edit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from cogedit.artifacts import (
    EditRecord,
    FramesRecord,
    LatentsRecord,
    ModelRecord,
    Record,
    TrajectoryRecord,
    canonical_json,
    write_artifact,
)
from cogedit.artifacts.codec import canonical_text
from cogedit.sources import MaskSource, ResizeBox, SourceVideo
from cogedit.types import EncodeSettings, InvertSettings, LoadSettings, ReconstructSettings

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Chain:
    """Files, records as written and tensors, by kind."""

    paths: Mapping[str, Path]
    records: Mapping[str, Record]
    tensors: Mapping[str, Tensors]

    def copy(self, kind: str, to: Path) -> Path:
        """A file of this kind that a test may damage."""
        to.write_bytes(self.paths[kind].read_bytes())
        return to


def header_size(content: bytes) -> int:
    """Bytes of length and header of a file."""
    return 8 + int.from_bytes(content[:8], "little")


def packed(body: bytes, payload: bytes = b"") -> bytes:
    """A file of a header and a payload."""
    body += b" " * (-len(body) % 8)
    return len(body).to_bytes(8, "little") + body + payload


def forged(content: bytes, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> bytes:
    """The file with its record and tensor table changed and the record's digest made anew."""
    size = header_size(content)
    header = json.loads(content[8:size])
    record = json.loads(header["__metadata__"]["cogedit"])["record"]
    change(record, header)
    text = canonical_text(record)
    digest = hashlib.sha256(text.encode()).hexdigest()
    header["__metadata__"]["cogedit"] = f'{{"record":{text},"sha256":"{digest}"}}'
    return packed(json.dumps(header, separators=(",", ":")).encode(), content[size:])


def bare_frames_record() -> FramesRecord:
    """A fixed record of a clip that was not written yet."""
    source = SourceVideo(
        name="clip.mp4",
        sha256="ab" * 32,
        width=40,
        height=30,
        rotation=0,
        fps=Fraction(30000, 1001),
        num_frames=20,
        reader="decord",
        has_audio=True,
    )
    return FramesRecord(
        source=source,
        settings=LoadSettings(width=16, height=8, max_num_frames=9, frame_sample_step=2),
        frame_indices=tuple(range(0, 18, 2)),
        fps=Fraction(15000, 1001),
        box=ResizeBox(16, 12, 0, 2, "crop"),
        cogedit_version="0.1.0",
    )


def make_chain(folder: Path) -> Chain:
    """The four artifacts of one edit, written to `folder`."""
    generator = torch.Generator().manual_seed(0)
    z0 = torch.randn(1, 3, 4, 2, 2, generator=generator)
    steps = torch.randn(5, 1, 3, 4, 2, 2, generator=generator)
    timesteps = torch.arange(199, 1000, 200)
    tensors: dict[str, Tensors] = {
        "frames": {
            "frames": torch.randint(0, 256, (9, 8, 16, 3), generator=generator, dtype=torch.uint8)
        },
        "latents": {"latents": z0},
        "trajectory": {"latents": z0, "trajectory": steps, "timesteps": timesteps},
        "edit": {
            "latents": steps[-1],
            "mask": torch.randint(0, 2, (9, 8, 16), generator=generator, dtype=torch.uint8),
            "source_latents": z0,
            "trajectory": steps.flip(0),
        },
    }
    model = ModelRecord("zai-org/CogVideoX-5b", "c0ffee", "cd" * 32, "bf16")
    records: dict[str, Record] = {}

    def path(kind: str) -> Path:
        return folder / f"{kind}.safetensors"

    frames = write_artifact(path("frames"), tensors["frames"], bare_frames_record())
    latents = write_artifact(
        path("latents"), tensors["latents"], LatentsRecord(frames, model, EncodeSettings())
    )
    trajectory = write_artifact(
        path("trajectory"),
        tensors["trajectory"],
        TrajectoryRecord(
            latents,
            model,
            InvertSettings(num_inference_steps=5),
            canonical_json({"beta_start": 0.00085, "trained_betas": None}),
        ),
    )
    edit = write_artifact(
        path("edit"),
        tensors["edit"],
        EditRecord(
            trajectory,
            model,
            ReconstructSettings("ein Bär \U0001f43b"),
            has_trajectory=True,
            mask=MaskSource("picture", "mask.png", "ef" * 32),
        ),
    )
    records = {"frames": frames, "latents": latents, "trajectory": trajectory, "edit": edit}
    return Chain({kind: path(kind) for kind in records}, records, tensors)
