"""Read by the Python processes that tests start: `decord` in `conftest` says why."""

import sys

sys.modules["decord"] = None  # type: ignore[assignment]
