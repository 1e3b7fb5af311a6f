"""The tokens of a row on several devices (DeepSpeed-Ulysses, arXiv 2309.14509).

Each rank of a team holds its part of the image's tokens and of the text's, and computes everything
but attention on these. For attention an all-to-all gives each rank all tokens of its part of the
heads, and a second one takes them back. So the heads divide by the size of the team; the tokens
need not, parts then differ by one. Products of other sizes add up in another order: results are
the same to rounding.

diffusers has this, too (`ContextParallelConfig`), and it does not serve here: what it puts around
attention returns no log-sum-exp with torch's kernels, which an injection strength other than 1
needs; keys of an edit row and of its reference would come joined and no longer know which of them
are the text's; uneven parts cost it a message for their sizes at every attention; and its one mesh
for the life of a model leaves no room for teams that change with the call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from cogedit.models.attention import Heads, Rotary
from cogedit.models.ranks import may_be_lost


@dataclass(frozen=True)
class Team:
    """Ranks that share the tokens of every row of a call.

    Attributes:
        group: Their process group.
        rank: Number of this one among them.
        size: How many there are.
        num_text: Tokens of a row's text.
        num_image: Of its image.
    """

    group: dist.ProcessGroup
    rank: int
    size: int
    num_text: int
    num_image: int

    def own(self, tokens: Tensor, dim: int = 1) -> Tensor:
        """Return this rank's part of the tokens of an image or a text, [rows, tokens, D]."""
        return tokens.tensor_split(self.size, dim)[self.rank]

    def own_rotary(self, rotary: Rotary | None) -> Rotary | None:
        """Return the positions of this rank's part of the image."""
        return None if rotary is None else (self.own(rotary[0], 0), self.own(rotary[1], 0))

    def whole(self, image: Tensor) -> Tensor:
        """Join the parts of an image, [rows, tokens, D], in every rank."""
        most = -(-self.num_image // self.size)
        padded = functional.pad(image, (0, 0, 0, most - image.shape[1])).contiguous()
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        with may_be_lost():
            dist.all_gather(parts, padded, group=self.group)
        return torch.cat(
            [part[:, : self._count(self.num_image, k)] for k, part in enumerate(parts)], dim=1
        )

    def to_heads(self, own: Heads) -> Heads:
        """Turn all heads of this rank's tokens into all tokens of its heads, the text's first."""
        # [3, rows, heads / size, tokens, head_dim] for each rank.
        parts = torch.tensor_split(torch.stack(own), self.size, dim=2)
        counts = [
            (self._count(self.num_text, k), self._count(self.num_image, k))
            for k in range(self.size)
        ]
        *shape, _, head_dim = parts[0].shape
        received = self._exchange(parts, [(*shape, sum(count), head_dim) for count in counts])
        texts = [x[..., :text, :] for x, (text, _) in zip(received, counts, strict=True)]
        images = [x[..., text:, :] for x, (text, _) in zip(received, counts, strict=True)]
        return Heads(*torch.cat([*texts, *images], dim=-2))

    def to_tokens(self, attended: Tensor) -> Tensor:
        """Turn all tokens of this rank's heads back into all heads of its tokens."""
        text, image = torch.tensor_split(attended, [self.num_text], dim=2)
        pairs = zip(text.tensor_split(self.size, 2), image.tensor_split(self.size, 2), strict=True)
        parts = [torch.cat(pair, dim=2) for pair in pairs]
        received = self._exchange(parts, [parts[self.rank].shape] * self.size)
        return torch.cat(received, dim=1)

    def _count(self, tokens: int, rank: int) -> int:
        """How many of some tokens are in a rank's part."""
        return tokens // self.size + (rank < tokens % self.size)

    def _exchange(self, parts: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Give each rank its part, and return what they give, in these shapes."""
        sizes = [math.prod(shape) for shape in shapes]
        given = torch.cat([part.reshape(-1) for part in parts])
        taken = given.new_empty(sum(sizes))
        with may_be_lost():
            dist.all_to_all_single(
                taken, given, sizes, [part.numel() for part in parts], group=self.group
            )
        return [x.view(*shape) for x, shape in zip(torch.split(taken, sizes), shapes, strict=True)]


@dataclass(frozen=True)
class Part:
    """What this process computes of a call: some rows, and its team's part of their tokens."""

    rows: frozenset[int]
    team: Team | None = None
