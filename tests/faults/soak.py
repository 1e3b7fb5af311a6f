"""Whether the fault suite runs in its long version.

Not in `conftest.py`: there are two modules of that name, and processes of the tests' own import
this by name.
"""

import os

SOAK = os.environ.get("COGEDIT_SOAK", "") not in ("", "0")
"""Whether this is `make soak`, the long version."""
