"""Records that cogedit 0.1.0 wrote: read, written again and found by their keys as they were.

`tests/data/records/0.1.0.json` holds texts, content keys and digests of headers that the code of
0.1.0 made, of records of every kind. A change that breaks one of them loses users' inversions:
give a retired field its neutral value (`cogedit.types`) or raise SCHEMA_VERSION.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from cogedit.artifacts import (
    EditRecord,
    TrajectoryRecord,
    content_key,
    parse_json,
    record_of,
    record_text,
)
from cogedit.artifacts.codec import decode_record
from cogedit.artifacts.embeds import EmbedsRecord
from cogedit.artifacts.layout import decode_header, encode_header
from cogedit.artifacts.steps import StepRecord
from cogedit.errors import ArtifactError

STORED = json.loads((Path(__file__).parents[1] / "data" / "records" / "0.1.0.json").read_text())
REFUSED = "edit with drift correction"
READ = [one for one in STORED["records"] if one["name"] != REFUSED]


@pytest.mark.parametrize("stored", READ, ids=[one["name"] for one in READ])
def test_a_record_is_read_and_keeps_its_key(stored: dict[str, Any]) -> None:
    value = parse_json(stored["text"])
    assert isinstance(value, dict)
    record = record_of(value)
    assert record.kind == stored["kind"]
    assert record_text(record) == stored["text"]
    assert content_key(record) == stored["key"]
    if stored["header"] is not None:
        header = encode_header(record)
        assert hashlib.sha256(header).hexdigest() == stored["header"]
        assert decode_header(header) == record
    if isinstance(record, TrajectoryRecord):
        assert record.settings.num_low_levels == 0  # unasked, there are two today
    if isinstance(record, EditRecord):
        assert record.settings.injection_recentering == 0  # unasked, values move today
        assert record.settings.guidance_reuse == 0  # unasked, 0.05 today


def test_a_setting_that_is_no_more_is_refused_where_it_was_used() -> None:
    [stored] = [one for one in STORED["records"] if one["name"] == REFUSED]
    value = json.loads(stored["text"])
    with pytest.raises(ArtifactError, match=r"drift_correction is 0\.5, expected 0\.0: drift"):
        record_of(value)
    del value["settings"]["drift_correction"]
    with pytest.raises(ArtifactError, match="has no field 'drift_correction'"):
        record_of(value)


def test_steps_and_prompt_embeddings_keep_their_names() -> None:
    for step in STORED["steps"]:
        assert decode_record(parse_json(step["text"]), StepRecord).digest == step["digest"]
    for embeds in STORED["embeds"]:
        assert decode_record(parse_json(embeds["text"]), EmbedsRecord).key == embeds["key"]
