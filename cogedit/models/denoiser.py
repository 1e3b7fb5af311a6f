"""The transformer as a velocity function v(x_t, t): rows in, one guided prediction out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cogedit.diffusion.guidance import guide
from cogedit.models.attention import Injection
from cogedit.models.rotary import image_rotary_emb

if TYPE_CHECKING:
    from diffusers import CogVideoXTransformer3DModel


class Denoiser:
    """v(x_t, t) under one prompt, with guidance and, where one is given, a reference.

    A call runs these rows in one batch, as the upstream script does; without guidance (scale 1, or
    equal embeddings on both sides, where it could not matter) the unconditional rows are left out:

        [edit-uncond, edit-cond, ref-uncond, ref-cond]

    The prediction of the reference rows is thrown away; their keys and values are what the edit
    rows look at.

    Args:
        transformer: The checkpoint's transformer.
        prompt_embeds: [1, L, D].
        negative_prompt_embeds: [1, L, D]; None means no guidance.
        guidance_scale: 1 means no guidance.
        injection: Told which row looks at which before every call; None where the transformer's
            processors know it by themselves.
    """

    def __init__(
        self,
        transformer: CogVideoXTransformer3DModel,
        *,
        prompt_embeds: Tensor,
        negative_prompt_embeds: Tensor | None = None,
        guidance_scale: float = 1.0,
        injection: Injection | None = None,
    ) -> None:
        self.transformer = transformer
        self.guidance_scale = guidance_scale
        self.injection = injection
        guided = (
            guidance_scale != 1
            and negative_prompt_embeds is not None
            and not torch.equal(prompt_embeds, negative_prompt_embeds)
        )
        sides = [negative_prompt_embeds, prompt_embeds] if guided else [prompt_embeds]
        self._embeds = torch.cat(
            [e.to(transformer.device, transformer.dtype) for e in sides if e is not None]
        )
        self._rotary: dict[tuple[int, ...], tuple[Tensor, Tensor] | None] = {}

    @property
    def num_sides(self) -> int:
        """2 with guidance, 1 without."""
        return self._embeds.shape[0]

    def __call__(self, sample: Tensor, timestep: int, reference: Tensor | None = None) -> Tensor:
        """Predict v.

        Args:
            sample: x_t, [B, F, C, H, W] float32.
            timestep: Its level.
            reference: x*_t of the source, like `sample`; None runs the edit rows alone.

        Returns:
            v, float32, like `sample`.
        """
        batch = sample.shape[0]
        samples = [sample] if reference is None else [sample, reference.to(sample.device)]
        rows = torch.cat([x for x in samples for _ in range(self.num_sides)])
        texts = self._embeds.repeat_interleave(batch, dim=0).repeat(len(samples), 1, 1)
        num_edits = batch * self.num_sides
        if self.injection is not None:
            has_reference = reference is not None
            self.injection.reference_of = (
                tuple(range(num_edits, 2 * num_edits)) if has_reference else ()
            )
        v = self._transform(rows, texts, timestep)[:num_edits]
        if self.num_sides == 1:
            return v
        unconditional, conditional = v.chunk(2)
        return guide(unconditional, conditional, guidance_scale=self.guidance_scale)

    def _transform(self, rows: Tensor, texts: Tensor, timestep: int) -> Tensor:
        """Run the transformer on rows [R, F, C, H, W] and texts [R, L, D]."""
        device, dtype = self.transformer.device, self.transformer.dtype
        shape = rows.shape[1], rows.shape[3], rows.shape[4]
        if shape not in self._rotary:
            self._rotary[shape] = image_rotary_emb(self.transformer, shape)
        with torch.no_grad():
            v: Tensor = self.transformer(
                hidden_states=rows.to(device, dtype),
                encoder_hidden_states=texts,
                timestep=torch.full((rows.shape[0],), timestep, device=device),
                image_rotary_emb=self._rotary[shape],
                return_dict=False,
            )[0]
        return v.float().to(rows.device)
