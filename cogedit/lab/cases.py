"""What the quality benchmark asks for: held-out clips, edits of them, and the right answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from cogedit.errors import UsageError
from cogedit.lab import world

EditKind = Literal["color", "shape", "background", "same", "texture"]
EDIT_KINDS: tuple[EditKind, ...] = get_args(EditKind)
TEXT_KINDS: tuple[EditKind, ...] = ("color", "shape", "background", "same")
"""Edits that a caption can ask for."""
FRAME_KINDS: tuple[EditKind, ...] = ("color", "shape", "texture")
"""Edits that a first frame is asked for; no caption names the texture."""

# Targets come from a random stream of their own: another kind of edit or another number of clips
# does not change them.
_TARGET_STREAM = 0x7A46_0001


@dataclass(frozen=True)
class EditCase:
    """One edit of one clip, with its right answer."""

    seed: int  # number of the source clip among the held-out ones
    kind: EditKind  # the attribute that changes; "same" asks for the source itself
    source: world.ClipSpec  # the clip that is edited
    right: world.ClipSpec  # the clip that should come out

    @property
    def source_prompt(self) -> str:
        """The full caption of the source."""
        return world.caption(self.source)

    @property
    def prompt(self) -> str:
        """The full caption of the right answer: the prompt of the edit."""
        return world.caption(self.right)


def change_mask(case: EditCase) -> npt.NDArray[np.uint8]:
    """Render the exact mask of an edit: every pixel that the right answer may change.

    [F, H, W] uint8, 1 where the source's object or the right answer's is, a part of a pixel
    included; of a background or its texture, where anything but the object is.
    """
    source, right = world.render_mask(case.source), world.render_mask(case.right)
    changes = source < 1 if edits_background(case.kind) else np.maximum(source, right) > 0
    return np.asarray(changes, dtype=np.uint8)


def edits_background(kind: EditKind) -> bool:
    """Whether an edit of this kind changes what lies behind the object."""
    return kind in ("background", "texture")


def make_case(seed: int, kind: EditKind, *, num_frames: int = world.NUM_FRAMES) -> EditCase:
    """Draw a held-out clip and an edit of it; equal arguments give equal cases.

    Args:
        seed: Number of the held-out clip, at least 0. Such clips are never trained on.
        kind: What changes. The new value is drawn among those that the clip does not have.
        num_frames: Of the clip, as `world.sample_spec` takes it; captions do not depend on it.

    Raises:
        UsageError: The kind is unknown, the seed is negative or the number of frames too small.
    """
    if kind not in EDIT_KINDS:
        raise UsageError(f"unknown kind of edit {kind!r}: expected one of {', '.join(EDIT_KINDS)}")
    source = world.sample_spec(seed, "held_out", num_frames=num_frames)
    rng = np.random.default_rng((_TARGET_STREAM, EDIT_KINDS.index(kind), seed))

    def other(names: tuple[str, ...], current: str) -> str:
        return str(rng.choice([name for name in names if name != current]))

    if kind == "color":
        edit = world.Edit(color=other(tuple(world.COLORS), source.color))
    elif kind == "shape":
        edit = world.Edit(shape=other(world.SHAPES, source.shape))
    elif kind == "background":
        edit = world.Edit(background=other(tuple(world.BACKGROUNDS), source.background))
    elif kind == "texture":
        edit = world.Edit(texture=_other_texture(source.texture, rng))
    else:
        edit = world.Edit()
    return EditCase(seed, kind, source, world.counterfactual(source, edit))


def _other_texture(current: world.Texture, rng: np.random.Generator) -> world.Texture:
    """Draw a texture of another kind that is plainly seen."""
    kinds = [kind for kind in world.TEXTURES if kind not in ("plain", current.kind)]
    return world.Texture(
        kind=str(rng.choice(kinds)),
        amplitude=rng.uniform(16.0, 22.0),
        period=rng.uniform(14.0, 28.0),
        phase=rng.uniform(0.0, 2 * math.pi),
        angle=rng.uniform(0.0, math.pi),
    )
