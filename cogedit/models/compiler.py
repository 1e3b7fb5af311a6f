"""What torch's compiler cannot do here, and whom its folder belongs to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cogedit.errors import UsageError, first_line

if TYPE_CHECKING:
    from torch import nn


def compile_options(block: nn.Module) -> dict[str, bool]:
    """Return what torch's compiler ("inductor") has to be told about a block.

    Where it finds the pattern of a product with 8-bit integers and their scales, it puts a kernel
    that is meant for a few tokens: two blocks of CogVideoX-5B took 8.9 s on an H200 and 0.06 s
    uncompiled, and on a CPU a product takes 2.4 times as long. So it looks for none in such blocks.
    """
    has_integers = any(weight.dtype == torch.int8 for weight in block.parameters())
    return {"pattern_matcher": False} if has_integers else {}


@contextmanager
def compiling() -> Iterator[None]:
    """Compile in the body, with a sentence where that fails.

    Raises:
        UsageError: The compiler failed, as on a machine without one for C++, or it would run code
            of another user's.
    """
    from torch._dynamo.exc import TorchDynamoException

    _own_folder()
    try:
        yield
    except TorchDynamoException as error:
        cause: BaseException = getattr(error, "inner_exception", error)
        raise UsageError(
            f"--compile does not work here: {first_line(cause)}", hint="leave --compile out"
        ) from error


def _own_folder() -> None:
    """Keep others out of the folder in which torch keeps compiled code, which it runs.

    Its name in /tmp is known beforehand, so that anybody may have made it. A folder that the user
    has named is the user's choice.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    named = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    try:
        folder = Path(default_cache_dir())
    except (KeyError, OSError):  # a user without a name, of whom older versions of torch know none
        folder = None
    if os.name == "nt" or (named is not None and named != str(folder)):
        return
    hint = "name a folder of your own in TORCHINDUCTOR_CACHE_DIR"
    if folder is None:
        raise UsageError("--compile has no folder for its code: this user has no name", hint=hint)
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        is_empty = not any(folder.iterdir())
    except OSError as error:
        raise UsageError(
            f"--compile cannot keep its code in {folder}: {error.strerror}", hint=hint
        ) from error
    if status.st_uid != os.getuid() or folder.is_symlink():
        why = "is a link or belongs to another user"
    elif status.st_mode & 0o002 and not is_empty:
        why = "others may have written to"
    else:
        if status.st_mode & 0o022:
            folder.chmod(0o700)
        return
    raise UsageError(f"--compile would run what lies in {folder}, which {why}", hint=hint)
