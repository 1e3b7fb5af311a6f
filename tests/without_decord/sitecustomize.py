"""Read by the Python processes that tests start: they import none of these.

`decord` in `conftest` says why of the one; the others, which diffusers imports where they are
installed, cost each of them a second or two.
"""

import sys

for name in ("decord", "peft"):
    sys.modules[name] = None  # type: ignore[assignment]
