"""What an export shows outside the mask of an edit."""

from __future__ import annotations

from cogedit.artifacts import EditRecord, Record
from cogedit.errors import UsageError
from cogedit.types import Composite, ExportSettings


def composite_for(record: Record, export: ExportSettings) -> Composite:
    """Choose what is shown outside the mask of an artifact.

    Unasked it is the source after the VAE's round trip: the pixels on both sides of the edge have
    then gone through the same codec, so that no seam shows, and the artifact alone suffices. An
    edit whose edges are aligned has the grain of the source's own frames, and goes with them.

    Raises:
        UsageError: A composite is asked for, and the artifact has no mask; or one that does not go
            with aligned edges.
    """
    check_composite(export)
    has_mask = isinstance(record, EditRecord) and record.has_mask
    wanted = export.composite
    if wanted is None:
        unasked: Composite = "source" if export.align_edges else "decode"
        return unasked if has_mask else "none"
    if wanted != "none" and not has_mask:
        raise UsageError(
            f"--composite {wanted} needs an edit with a mask; this artifact has none",
            hint="make one with `cogedit reconstruct --mask` or `--auto-mask`",
        )
    return wanted


def check_composite(export: ExportSettings) -> None:
    """Refuse what contradicts itself.

    Raises:
        UsageError: The source after the VAE is asked for around an edit with the source's own
            grain.
    """
    if export.align_edges and export.composite == "decode":
        raise UsageError(
            "--align-edges shows the grain of the source's own frames, and --composite decode "
            "what the VAE leaves of it",
            hint="--composite source goes with it, or --align-edges 0",
        )
