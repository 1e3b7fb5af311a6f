"""Silence the libraries' warnings and bars that do not help a user.

What is silenced belongs to the whole process, and so does what transformers changes while it loads:
one thread at a time is in these bodies, and the others wait.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cogedit.one_at_a_time import OneAtATime

_alone = OneAtATime()
"""Two threads that each put back what they found would leave the other's silence for good."""


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Import a library without its warnings.

    diffusers imports torchao where it is installed, which warns of kernels for other devices.
    """
    with _alone.turn():
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Load without the libraries' progress bars and long lists of keys.

    The body is one thread's at a time also because transformers replaces functions of its classes
    while it loads: two at once leave a model without its tied weights, and all later ones too.
    """
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    both = (diffusers_logging, transformers_logging)
    with _alone.turn():
        before = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in both]
        for log in both:
            log.set_verbosity_error()
            log.disable_progress_bar()
        try:
            yield
        finally:
            for log, verbosity, bars in before:
                log.set_verbosity(verbosity)
                if bars:
                    log.enable_progress_bar()


@contextmanager
def quiet_panics() -> Iterator[None]:
    """Drop what a Rust library writes to stderr, below Python, when it panics.

    The panic is raised as a BaseException, which says the same. What others write meanwhile is
    shown when the body has ended.
    """
    with _alone.turn(), _held_stderr():
        yield


@contextmanager
def _held_stderr() -> Iterator[None]:
    if os.name == "nt":  # others hold the handle of its console, which this would close
        yield
        return
    try:
        stderr = os.dup(2)
    except OSError:  # closed
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        panicked = False
        try:
            yield
        except BaseException as error:
            panicked = is_panic(error)
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            text = held.read()
            if text and not panicked:
                with suppress(OSError):
                    os.write(2, text)


def is_panic(error: BaseException) -> bool:
    """Whether an error is a panic of a Rust library, whose class has no module to import."""
    return type(error).__name__ == "PanicException"
