"""What differs between the systems, and more than one room needs."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

IS_WINDOWS = os.name == "nt"
IS_MAC = sys.platform == "darwin"

OWN_SESSION: dict[str, Any] = {"start_new_session": True}
"""Arguments of `subprocess` that keep the terminal's Ctrl-C from a process."""

if sys.platform == "win32":
    OWN_SESSION = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
