"""How notes and tables write numbers of things, sizes and rates, and what several hints say."""

from fractions import Fraction

LESS_CLIP = (
    "fewer frames (--max-num-frames), or as a last resort a smaller --width and --height, at which "
    "most models were not trained"
)
"""What needs less memory in every stage, for the end of a hint."""


def count_of(number: int, noun: str) -> str:
    """A number of things: `1 frame`, `9 frames`. The noun takes an s."""
    return f"{number} {noun_of(number, noun)}"


def noun_of(number: int, noun: str) -> str:
    """The noun alone, for a number that is written in another way, such as `1,200`."""
    return noun if number == 1 else f"{noun}s"


def show_gb(num_bytes: float) -> str:
    """A size of memory in GB, and of a small model in MB."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


def show_rate(fps: Fraction) -> str:
    """A rate to three decimals: `8.333 fps`; one below 1 per second to six."""
    return f"{round(float(fps), 3 if fps >= 1 else 6):g} fps"
