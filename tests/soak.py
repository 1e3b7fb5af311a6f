"""Whether the fault suite runs in its long version."""

import os
from collections.abc import Sequence
from typing import TypeVar

CaseT = TypeVar("CaseT")

SOAK = os.environ.get("SOAK", "") not in ("", "0")
"""Whether this is `make soak`, the long version.

Not a `COGEDIT_` variable: the commands under test refuse those that they do not know.
"""


def take_turns(cases: Sequence[CaseT], number: int, count: int) -> list[CaseT]:
    """Return all cases in the soak, otherwise `count` of them: others for the next number."""
    chosen = range(number * count, (number + 1) * count)
    return [*cases] if SOAK else [cases[index % len(cases)] for index in chosen]
