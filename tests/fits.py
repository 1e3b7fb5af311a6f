"""An edit with the edges of its source, as an export shows it."""

import numpy as np

from cogedit.media.edges import measure_moments


def align_edges(edited, round_trip, source, *, radius):
    """Show an edit [F, H, W, 3]; arguments are those of `measure_moments`."""
    moments = measure_moments(edited, round_trip, source, radius=radius)
    return np.stack([one.fit().on(own) for one, own in zip(moments, source, strict=True)])
