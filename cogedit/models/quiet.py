"""Silence the libraries' warnings and bars that do not help a user."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Import a library without its warnings.

    diffusers imports torchao where it is installed, which warns of kernels for other devices.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Load without the libraries' progress bars and long lists of keys."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    both = (diffusers_logging, transformers_logging)
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
