"""Messages between the processes of a run."""

import pytest

from cogedit.models.messages import opened, sealed

MESSAGE = ("run", {"timestep": 999}, [1.5, None])


def test_what_was_sealed_with_a_key_is_opened_with_it():
    assert opened(sealed(MESSAGE, b"key"), b"key") == MESSAGE


class Planted:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("it was unpickled",)


@pytest.mark.parametrize("change", ["key", "content", "seal", "cut"])
def test_what_others_wrote_is_not_read(change):
    data, key = bytearray(sealed(Planted(), b"theirs")), b"theirs"
    if change == "key":
        key = b"ours"
    elif change == "cut":
        data = data[:8]
    else:
        data[0 if change == "seal" else -1] ^= 1
    with pytest.raises(ValueError, match="not from this run"):
        opened(bytes(data), key)
