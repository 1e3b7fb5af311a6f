"""How notes and tables write a number of things and a frame rate, and what several hints say."""

from fractions import Fraction

LESS_CLIP = (
    "fewer frames (--max-num-frames), or as a last resort a smaller --width and --height, at which "
    "most models were not trained"
)
"""What needs less memory in every stage, for the end of a hint."""


def count_of(number: int, noun: str) -> str:
    """A number of things: `1 frame`, `9 frames`. The noun takes an s."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def show_rate(fps: Fraction) -> str:
    """A rate to three decimals: `8.333 fps`; one below 1 per second to six."""
    return f"{round(float(fps), 3 if fps >= 1 else 6):g} fps"
