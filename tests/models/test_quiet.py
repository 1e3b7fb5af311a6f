"""What is silenced while a library is imported or loads comes back, whatever other threads do."""

import logging
import os
import signal
import sys
import threading
import warnings
from contextlib import suppress

import pytest
from threads import another_thread_in

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


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.parametrize("body", BODIES)
def test_a_forked_process_does_not_wait_for_a_thread_that_it_does_not_have(body):
    with another_thread_in(body):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # other threads run
            child = os.fork()
        if child == 0:
            signal.alarm(60)  # ends a process that waits for ever
            with quiet_imports():
                os._exit(0)
        _, status = os.waitpid(child, 0)
    assert status == 0
