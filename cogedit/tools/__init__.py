"""What works over many runs of the stages: batches, sweeps, comparisons, reports, estimates.

Each tool uses the stages and never the other way round. Importing this package loads no torch.
"""

from cogedit.tools.compare import compare
from cogedit.tools.estimate import Estimate, estimate
from cogedit.tools.report import report
from cogedit.tools.sweep import Swept, sweep

__all__ = ["Estimate", "Swept", "compare", "estimate", "report", "sweep"]
