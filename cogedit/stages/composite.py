"""What an export shows outside the mask of an edit."""

from __future__ import annotations

from cogedit.artifacts import EditRecord, Record
from cogedit.config import Settings
from cogedit.errors import UsageError
from cogedit.types import Composite


def composite_for(record: Record, settings: Settings) -> Composite:
    """Choose what is shown outside the mask of an artifact.

    Unasked it is the source after the VAE's round trip: the pixels on both sides of the edge have
    then gone through the same codec, so that no seam shows, and the artifact alone suffices. An
    edit whose edges are aligned has the grain of the source's own frames, and goes with them.

    Raises:
        UsageError: A composite is asked for, and the artifact has no mask.
    """
    has_mask = isinstance(record, EditRecord) and record.has_mask
    wanted = settings.export.composite
    if wanted is None:
        unasked: Composite = "source" if settings.export.align_edges else "decode"
        return unasked if has_mask else "none"
    if wanted != "none" and not has_mask:
        raise UsageError(
            f"--composite {wanted} needs an edit with a mask; this artifact has none",
            hint="make one with `cogedit reconstruct --mask` or `--auto-mask`",
        )
    return wanted
