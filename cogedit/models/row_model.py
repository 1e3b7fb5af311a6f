"""The transformer as a function of rows: samples of edits and of sources, each under a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cogedit.models.attention import Injection
from cogedit.models.device import compute_device
from cogedit.models.forward import CallOptions, chunk_size, runs_rows
from cogedit.models.rotary import image_rotary_emb
from cogedit.models.rows import RowPlan
from cogedit.models.ulysses import Part

if TYPE_CHECKING:
    from diffusers import CogVideoXTransformer3DModel

OFFSET = 2.0
"""What a transformer with an offset embedding is given (CogVideoX 1.5 from a first frame).

`CogVideoXImageToVideoPipeline` of diffusers gives the same.
"""


@dataclass(frozen=True)
class RowCall:
    """One call of the transformer.

    Attributes:
        plan: Its rows.
        timestep: Of all samples.
        injection: How edit rows attend to reference rows; None where there are none, or the
            transformer's attention processors know by themselves.
    """

    plan: RowPlan
    timestep: int
    injection: Injection | None


class RowModel:
    """Predicts v of rows."""

    def __init__(self, transformer: CogVideoXTransformer3DModel) -> None:
        self._transformer = transformer
        self._rotary = lru_cache(maxsize=1)(
            lambda *shape: image_rotary_emb(transformer, shape)  # once per run, not per step
        )

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return compute_device(self._transformer)

    @property
    def num_heads(self) -> int:
        """Heads of an attention."""
        return int(self._transformer.config.num_attention_heads)

    @property
    def num_channels(self) -> int:
        """Channels of a velocity: of a sample, but for those of its condition."""
        return int(self._transformer.config.out_channels)

    def num_image_tokens(self, shape: torch.Size) -> int:
        """Return the tokens of a sample's image; its shape is [B, F, C, H, W]."""
        config = self._transformer.config
        patch: int = config.patch_size
        patch_t: int = config.patch_size_t or 1
        return -(-shape[1] // patch_t) * (shape[3] // patch) * (shape[4] // patch)

    def rows_at_a_time(self, num_text_tokens: int, shape: torch.Size) -> int:
        """Return how many rows of such samples a layer runs at a time, inside of `run_rows`."""
        num_tokens = num_text_tokens + self.num_image_tokens(shape)
        return chunk_size(self._transformer, num_tokens)

    def __call__(
        self,
        call: RowCall,
        embeds: Tensor,
        sample: Tensor,
        reference: Tensor | None = None,
        *,
        part: Part | None = None,
    ) -> Tensor:
        """Predict v of each row, without guidance, in the dtype of the sample and on its device.

        A transformer that takes a first frame has samples of 2 C channels (`with_condition`).

        Args:
            call: Which rows.
            embeds: The prompt of each, [rows, L, D].
            sample: x_t of each edit, [B, F, C, H, W].
            reference: x*_t of each source, [S, F, C, H, W]; None runs the edit rows alone.
            part: What of it this process computes, the same in every layer; None is all. Rows that
                it leaves out are without meaning.
        """
        plan, rows = call.plan, [sample[[row.sample for row in call.plan.edits]]]
        options: CallOptions = {}
        if reference is not None:
            rows.append(reference[[row.sample for row in plan.references]].to(sample.device))
            if call.injection is not None:
                options |= {"plan": plan, "injection": call.injection}
        if part is not None:
            options["part"] = part
        if options and not runs_rows(self._transformer):  # diffusers would log that it ignores them
            raise ValueError("a denoiser with an injection needs `run_rows` around it")
        transformer, device = self._transformer, self.device
        has_offset = bool(transformer.config.ofs_embed_dim)
        with torch.no_grad():
            v: Tensor = transformer(
                hidden_states=torch.cat(rows).to(device, transformer.dtype),
                encoder_hidden_states=embeds,
                # One for all rows: time embedding and modulation are computed once per layer.
                timestep=torch.full((1,), call.timestep, device=device),
                ofs=torch.full((1,), OFFSET, device=device) if has_offset else None,
                image_rotary_emb=self._rotary(sample.shape[1], *sample.shape[3:]),
                attention_kwargs=options or None,
                return_dict=False,
            )[0]
        return v.to(sample)
