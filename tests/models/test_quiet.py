"""What is silenced while a library is imported or loads comes back, whatever other threads do."""

import logging
import threading
from contextlib import suppress

import pytest

from cogedit.models.quiet import quiet_imports, quiet_loading, quiet_panics

BODIES = [quiet_imports, quiet_loading, quiet_panics]


@pytest.mark.parametrize("body", BODIES)
def test_one_thread_at_a_time(body):
    """What one put back while another is inside would be what the other one silenced."""
    both, met = threading.Barrier(2), []

    def enter():
        with body(), suppress(threading.BrokenBarrierError):
            both.wait(timeout=0.3)  # nobody comes
            met.append(True)

    threads = [threading.Thread(target=enter) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not met


@pytest.mark.parametrize("outer", BODIES)
@pytest.mark.parametrize("inner", BODIES)
def test_they_nest_in_one_thread(outer, inner):
    before = logging.root.manager.disable
    with outer(), inner():
        pass
    assert logging.root.manager.disable == before
