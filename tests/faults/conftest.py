"""The scores of the fault suite, and what its files share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from soak import SOAK

# One fixed set of examples in CI, fresh ones in the soak; no database, which would be a folder.
# Nor a limit of time, which a busy machine breaks.
_COMMON = settings(deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", _COMMON, derandomize=True)
settings.register_profile("soak", _COMMON, max_examples=5_000)
settings.load_profile("soak" if SOAK else "ci")


@dataclass
class Score:
    """The cases of one row of the table."""

    row: str
    total: int = 0
    failures: list[str] = field(default_factory=list)

    def case(self, passed: bool, name: str) -> None:
        """Count a case; `name` says which one failed."""
        self.total += 1
        if not passed:
            self.failures.append(name)


@pytest.fixture
def score(record_property):
    """`with score(ROW) as cases: cases.case(passed, name)`: counts, then fails if one failed.

    Tests that name the same row add up in the table.
    """

    @contextmanager
    def scored(row: str) -> Iterator[Score]:
        cases = Score(row)
        try:
            yield cases
        except BaseException:
            cases.case(False, "stopped")
            raise
        finally:
            passed = cases.total - len(cases.failures)
            record_property("score", [cases.row, passed, cases.total])
        assert cases.total > 0
        assert not cases.failures, f"{len(cases.failures)} failed: {cases.failures[:5]}"

    return scored
