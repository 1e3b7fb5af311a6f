"""Threads that tests start."""

import threading
from contextlib import contextmanager


@contextmanager
def another_thread_in(body):
    """Have another thread inside the body of a context manager, until this one's own ends."""
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with body():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()
    try:
        yield
    finally:
        leave.set()
        thread.join()
