"""`python -m cogedit.lab.measured REPORT LIMIT ARGUMENTS...`: a command and the memory it took.

Runs `cogedit ARGUMENTS` in this process, and however it ends leaves in the file REPORT, as JSON,
the most bytes that torch had on the CUDA device and in page-locked host memory. Only the process
itself can know them.

LIMIT is "cpu", where torch is left alone, or the bytes of the device that the process may take; 0
is all of them. With a limit the process finds a device of that size: torch refuses more, and what
asks how much is free is told what a small device would say. What CUDA itself takes, about half a
gigabyte, is not counted.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any


class CudaMemory:
    """Keeps the largest of all peaks, also of those that the program resets."""

    def __init__(self) -> None:
        import torch

        self._cuda: Any = torch.cuda
        self._allocated = self._reserved = 0
        self._reset = torch.cuda.reset_peak_memory_stats
        torch.cuda.reset_peak_memory_stats = self._remember_and_reset

    def limit(self, num_bytes: int) -> None:
        """Make the device as small as this."""
        real, cuda = self._cuda.mem_get_info, self._cuda
        num_bytes = min(num_bytes, real()[1])
        cuda.set_per_process_memory_fraction(num_bytes / real()[1])

        def free_of_total(device: object = None) -> tuple[int, int]:
            return min(real(device)[0], num_bytes - cuda.memory_reserved(device)), num_bytes

        cuda.mem_get_info = free_of_total

    def peaks(self) -> dict[str, int]:
        """The most bytes in tensors, reserved for them, and page-locked in host memory."""
        self._remember()
        pinned: dict[str, int] = {}
        if self._cuda.is_initialized():
            pinned = self._cuda.host_memory_stats()
        return {
            "allocated": self._allocated,
            "reserved": self._reserved,
            "pinned": int(pinned.get("allocated_bytes.peak", 0)),
        }

    def _remember(self) -> None:
        self._allocated = max(self._allocated, self._cuda.max_memory_allocated())
        self._reserved = max(self._reserved, self._cuda.max_memory_reserved())

    def _remember_and_reset(self, device: Any = None) -> None:  # noqa: ANN401
        self._remember()
        self._reset(device)


def main() -> None:
    """Run the command line; its exit code is this process's."""
    report, limit, *arguments = sys.argv[1:]
    memory = None
    if limit != "cpu":
        memory = CudaMemory()
        if int(limit):
            memory.limit(int(limit))
    sys.argv = ["cogedit", *arguments]
    try:
        runpy.run_module("cogedit", run_name="__main__", alter_sys=True)
    finally:
        peaks = {} if memory is None else memory.peaks()
        Path(report).write_text(json.dumps(peaks), encoding="utf-8")


if __name__ == "__main__":
    main()
