"""Lets another process act between any two calls of the system that code under test makes."""

import io
import os
from contextlib import contextmanager
from itertools import count
from unittest.mock import patch

CALLS = (
    *("access", "link", "listdir", "lstat", "mkdir", "open", "readlink", "rename", "replace"),
    *("rmdir", "scandir", "stat", "unlink", "utime"),
)


def at_every_moment(prepare, act, look):
    """What is seen if another process acts before the first call of a look, the second, and so on.

    Args:
        prepare: Makes what there is before each look.
        act: What the other process does, once.
        look: The code under test.
    """
    for number in count(1):
        prepare()
        with _acting(number, act) as has_acted:
            seen = look()
        if not has_acted:
            return
        yield seen


@contextmanager
def _acting(number, act):
    calls, has_acted = count(1), []

    def interrupted(real):
        def call(*args, **kwargs):
            if not has_acted and next(calls) == number:
                has_acted.append(True)
                act()
            return real(*args, **kwargs)

        return call

    with (
        patch.multiple(os, **{name: interrupted(getattr(os, name)) for name in CALLS}),
        patch.object(io, "open", interrupted(io.open)),
    ):
        yield has_acted
