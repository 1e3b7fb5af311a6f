"""Read by the Python processes that tests start: they import neither of these.

`decord` in `conftest` says why of the one; the other costs each of them two seconds.
"""

import sys

for name in ("decord", "torchao"):
    sys.modules[name] = None  # type: ignore[assignment]
