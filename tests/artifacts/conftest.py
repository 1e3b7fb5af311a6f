import pytest
from chains import bare_frames_record

from cogedit.artifacts import FramesRecord


@pytest.fixture
def bare_record() -> FramesRecord:
    """A fixed record of a clip that was not written yet."""
    return bare_frames_record()
