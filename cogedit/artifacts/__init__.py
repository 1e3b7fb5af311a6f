"""Artifacts: what each stage writes and the next one reads, with how to remake it.

Importing this package and reading records loads no torch.
"""

from cogedit.artifacts.atomic import atomic_write, show_size
from cogedit.artifacts.codec import Json, JsonText, canonical_json, parse_json
from cogedit.artifacts.journal import append_line, check_journal, read_lines
from cogedit.artifacts.layout import record_of
from cogedit.artifacts.leases import writing_alone
from cogedit.artifacts.locks import in_use, keep_in_use, keeping_in_use, unused
from cogedit.artifacts.model_record import DeviceType, LoraRecord, ModelRecord
from cogedit.artifacts.records import (
    EditRecord,
    FramesRecord,
    LatentsRecord,
    Record,
    TrajectoryRecord,
    chain_of,
    content_key,
    frames_record,
    has_first_frame,
    num_pad_frames,
    record_text,
)
from cogedit.artifacts.slices import Pieces, Slices
from cogedit.artifacts.steps import (
    SavedSteps,
    Step,
    StepRecord,
    forget_steps,
    newest_step,
    read_last_step,
    read_steps,
    write_step,
)
from cogedit.artifacts.store import (
    MADE_BY,
    Artifact,
    read_artifact,
    read_record,
    sniff_kind,
    verify_artifact,
    write_artifact,
)
from cogedit.artifacts.tries import Tries
from cogedit.artifacts.unfinished import UNFINISHED_SUFFIX, Unfinished, made_together
from cogedit.artifacts.workspace import (
    Workspace,
    default_workspace,
    newest_artifact,
    short_stem,
)

__all__ = [
    "MADE_BY",
    "UNFINISHED_SUFFIX",
    "Artifact",
    "DeviceType",
    "EditRecord",
    "FramesRecord",
    "Json",
    "JsonText",
    "LatentsRecord",
    "LoraRecord",
    "ModelRecord",
    "Pieces",
    "Record",
    "SavedSteps",
    "Slices",
    "Step",
    "StepRecord",
    "TrajectoryRecord",
    "Tries",
    "Unfinished",
    "Workspace",
    "append_line",
    "atomic_write",
    "canonical_json",
    "chain_of",
    "check_journal",
    "content_key",
    "default_workspace",
    "forget_steps",
    "frames_record",
    "has_first_frame",
    "in_use",
    "keep_in_use",
    "keeping_in_use",
    "made_together",
    "newest_artifact",
    "newest_step",
    "num_pad_frames",
    "parse_json",
    "read_artifact",
    "read_last_step",
    "read_lines",
    "read_record",
    "read_steps",
    "record_of",
    "record_text",
    "short_stem",
    "show_size",
    "sniff_kind",
    "unused",
    "verify_artifact",
    "write_artifact",
    "write_step",
    "writing_alone",
]
