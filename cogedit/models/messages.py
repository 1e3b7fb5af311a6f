"""Messages between the processes of one run, which nobody else can write.

torch.distributed checks nobody who connects. What is heard is unpickled, which may run anything, so
each message is sealed with a key that the processes of the run alone know (HMAC, RFC 2104): a
random one, or the id of the run that a user gives to torchrun.
"""

from __future__ import annotations

import hmac
import pickle

_SEAL = "sha256"
_SEAL_BYTES = 32


def sealed(message: object, key: bytes) -> bytes:
    """Return a message as bytes, with its seal."""
    content = pickle.dumps(message)
    return hmac.digest(key, content, _SEAL) + content


def opened(data: bytes, key: bytes) -> object:
    """Return a message that was sealed with the same key.

    Raises:
        ValueError: It was not, and was not read.
    """
    seal, content = data[:_SEAL_BYTES], data[_SEAL_BYTES:]
    if not hmac.compare_digest(seal, hmac.digest(key, content, _SEAL)):
        raise ValueError("a message is not from this run")
    message: object = pickle.loads(content)
    return message
