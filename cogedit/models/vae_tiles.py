"""A VAE in overlapping tiles: where they lie, and how they are joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cogedit.disk import NamelessFile
from cogedit.errors import StorageError

if TYPE_CHECKING:
    from diffusers import AutoencoderKLCogVideoX


def use_tiles(vae: AutoencoderKLCogVideoX) -> None:
    """Let a VAE work in overlapping tiles that fit together.

    diffusers rounds the overlap to whole latents and to whole pixels, each for itself. Where a tile
    has few latents the two differ, and the joined image gets another size. Here the overlap is the
    nearest whole number of latents; that of CogVideoX's own VAE, whose tiles have 30x45 latents, is
    one already, so its results are those of diffusers.
    """
    vae.enable_tiling()
    for side in ("height", "width"):
        count = getattr(vae, f"tile_latent_min_{side}")
        name = f"tile_overlap_factor_{side}"
        overlap = min(max(1, round(count * getattr(vae, name))), count - 1)
        setattr(vae, name, overlap / count)


@dataclass(frozen=True)
class Tiles:
    """The tiles of an image, as diffusers lays them, for both sides: height and width.

    Attributes:
        parts: Rows of tiles, each by its rows and columns of the image that goes in.
        blended: Over how many pixels of the image that comes out a tile passes into the next.
        shown: How many pixels of a tile are shown there.
    """

    parts: tuple[tuple[tuple[slice, slice], ...], ...]
    blended: tuple[int, int]
    shown: tuple[int, int]

    @classmethod
    def of_frames(cls, vae: AutoencoderKLCogVideoX, size: Sequence[int]) -> Tiles | None:
        """The tiles of frames [..., H, W] to encode; None where there is one."""
        samples, latents = _tile_sizes(vae)
        return cls._of(vae, size, samples, latents)

    @classmethod
    def of_latents(cls, vae: AutoencoderKLCogVideoX, size: Sequence[int]) -> Tiles | None:
        """The tiles of latents [..., H', W'] to decode; None where there is one."""
        samples, latents = _tile_sizes(vae)
        return cls._of(vae, size, latents, samples)

    @classmethod
    def _of(
        cls,
        vae: AutoencoderKLCogVideoX,
        size: Sequence[int],
        before: tuple[int, int],
        after: tuple[int, int],
    ) -> Tiles | None:
        if not vae.use_tiling or all(side <= tile for side, tile in zip(size, before, strict=True)):
            return None
        factors = (vae.tile_overlap_factor_height, vae.tile_overlap_factor_width)
        rows, columns = (
            [slice(at, at + tile) for at in range(0, side, int(tile * (1 - factor)))]
            for side, tile, factor in zip(size, before, factors, strict=True)
        )
        height, width = (int(tile * factor) for tile, factor in zip(after, factors, strict=True))
        return cls(
            tuple(tuple((row, column) for column in columns) for row in rows),
            (height, width),
            (after[0] - height, after[1] - width),
        )

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(map(len, self.parts))

    def join(self, vae: AutoencoderKLCogVideoX, tiles: Sequence[Sequence[Tensor]]) -> Tensor:
        """Join rows of tiles [1, C, F, h, w], which are changed; each passes into the next."""
        height, width = self.shown
        joined = []
        for i, row in enumerate(tiles):
            for j, tile in enumerate(row):
                if i > 0:
                    vae.blend_v(tiles[i - 1][j], tile, self.blended[0])
                if j > 0:
                    vae.blend_h(row[j - 1], tile, self.blended[1])
            joined.append(torch.cat([tile[..., :height, :width] for tile in row], dim=-1))
        return torch.cat(joined, dim=-2)


def _tile_sizes(vae: AutoencoderKLCogVideoX) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width of a tile in pixels, and in latents."""
    return (
        (vae.tile_sample_min_height, vae.tile_sample_min_width),
        (vae.tile_latent_min_height, vae.tile_latent_min_width),
    )


class TensorFile:
    """Tensors of any dtype that wait in a file without a name."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._file = NamelessFile(folder)

    def put(self, tensor: Tensor) -> tuple[int, torch.Size, torch.dtype]:
        """Keep a tensor; return what `get` needs. Raises `StorageError` if there is no room."""
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        try:
            begin = self._file.append(content.numpy().data)
        except OSError as error:
            where = "the folder for temporary files" if self._folder is None else self._folder
            raise StorageError(
                f"cannot keep decoded tiles in {where}: {error.strerror or error}",
                hint="free some space",
            ) from error
        return begin, tensor.shape, tensor.dtype

    def get(self, kept: tuple[int, torch.Size, torch.dtype]) -> Tensor:
        """Read a tensor onto the CPU."""
        begin, shape, dtype = kept
        tensor = torch.empty(shape, dtype=dtype)
        self._file.read_into(tensor.reshape(-1).view(torch.uint8).numpy().data, begin)
        return tensor
