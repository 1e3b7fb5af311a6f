"""What torch's compiler cannot do here, and whom its folder belongs to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cogedit.errors import UsageError, first_line


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

    folder = Path(default_cache_dir())
    if os.name == "nt" or os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(folder)) != str(folder):
        return
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or folder.is_symlink():
        raise UsageError(
            f"--compile would run what lies in {folder}, which belongs to another user",
            hint="name a folder of your own in TORCHINDUCTOR_CACHE_DIR",
        )
    if status.st_mode & 0o022:
        folder.chmod(0o700)
