"""What works over many runs of the stages: batches, sweeps, comparisons, reports, estimates.

Each tool uses the stages and never the other way round. Importing this package loads no torch.
"""

from cogedit.tools.clip_cost import Estimate
from cogedit.tools.compare import compare
from cogedit.tools.estimate import estimate
from cogedit.tools.probe import LayerProbe, estimate_probe, probe_layers
from cogedit.tools.report import report
from cogedit.tools.sweep import Swept, sweep

__all__ = [
    "Estimate",
    "LayerProbe",
    "Swept",
    "compare",
    "estimate",
    "estimate_probe",
    "probe_layers",
    "report",
    "sweep",
]
