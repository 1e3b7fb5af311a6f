"""The path of one sample through the noise levels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from cogedit.diffusion.schedule import CLEAN, Schedule
from cogedit.errors import ArtifactMismatch
from cogedit.types import WindowPlan


class Samples(Protocol):
    """N samples, in memory or on disk: a tensor [N, B, F, C, H, W] is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor:
        """One of them, [B, F, C, H, W]."""


@dataclass(frozen=True)
class Trajectory:
    """Samples in inversion order: entry k is the sample at noise level `timesteps[k]`.

    Attributes:
        samples: N of [B, F, C, H, W] float32, or of one clip where all B are equal; the last is the
            noise. A long clip's are on disk: all of them take gigabytes.
        latents: The clean sample z0, [B, F, C, H, W] float32, which is not among `samples`.
        timesteps: N timesteps, rising.
        windows: What the inversion's model saw at a time; None is the whole clip.
    """

    samples: Samples
    latents: Tensor
    timesteps: tuple[int, ...]
    windows: WindowPlan | None = None

    def __post_init__(self) -> None:
        """Refuse timesteps that no inversion visits; those of a file may be a tensor or a list.

        Raises:
            ArtifactMismatch: They do not rise, one is negative, or not each sample has one.
        """
        object.__setattr__(self, "timesteps", tuple(map(int, self.timesteps)))
        if len(self.samples) != len(self.timesteps):
            raise ArtifactMismatch(
                f"the trajectory has {len(self.samples)} samples, expected {len(self.timesteps)}, "
                "one for each of its timesteps"
            )
        if list(self.timesteps) != sorted(set(self.timesteps)) or min(self.timesteps) <= CLEAN:
            raise ArtifactMismatch(
                f"the timesteps of the trajectory do not rise from 0: found {self.timesteps[:4]}",
                hint="invert the video again",
            )

    @classmethod
    def of(
        cls,
        samples: Samples,
        latents: Tensor,
        schedule: Schedule,
        *,
        windows: WindowPlan | None = None,
    ) -> Trajectory:
        """Name the samples of an inversion over `schedule` by timestep."""
        return cls(samples, latents, tuple(reversed(schedule.timesteps)), windows)

    def at(self, timestep: int) -> Tensor:
        """Return the sample at a timestep, [B, F, C, H, W]; z0 for the clean sample (-1).

        Looked up by timestep and never by position, so that an edit may skip timesteps of the
        inversion, and an off-by-one cannot hide.

        Raises:
            ArtifactMismatch: The inversion did not visit this timestep.
        """
        if timestep == CLEAN:
            return self.latents
        if timestep not in self.timesteps:
            raise ArtifactMismatch(
                f"the trajectory has no sample at timestep {timestep}; it has "
                f"{len(self.timesteps)} timesteps from {self.timesteps[0]} to {self.timesteps[-1]}",
                hint="invert again with the same --num-inference-steps as the edit",
            )
        return self._expanded(self.timesteps.index(timestep))

    def repeated(self, count: int) -> Trajectory:
        """Return one clip's trajectory as that of `count` equal clips, without a copy."""
        return replace(self, latents=self.latents.expand(count, *self.latents.shape[1:]))

    @property
    def noise(self) -> Tensor:
        """The sample at the noisiest timestep, [B, F, C, H, W]."""
        return self._expanded(len(self.samples) - 1)

    def _expanded(self, index: int) -> Tensor:
        return self.samples[index].expand(len(self.latents), -1, -1, -1, -1)
