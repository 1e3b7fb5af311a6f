"""Numbers with their units, for people."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Write a time as minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def rate(seconds_per_step: float) -> str:
    """Write how fast steps go."""
    if seconds_per_step >= 1:
        return f"{seconds_per_step:.1f} s/step"
    return f"{1 / max(seconds_per_step, 1e-6):.1f} steps/s"


def flops(count: float) -> str:
    """Write a number of operations with its unit."""
    for unit in ("MFLOP", "GFLOP", "TFLOP"):
        count /= 1000 if unit != "MFLOP" else 1e6
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} PFLOP"
