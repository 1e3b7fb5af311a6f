"""Whether the fault suite runs in its long version."""

import os

SOAK = os.environ.get("COGEDIT_SOAK", "") not in ("", "0")
"""Whether this is `make soak`, the long version."""
