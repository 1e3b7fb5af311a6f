"""The transformer as a velocity function v(x_t, t), guided, of several edits at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from cogedit.diffusion.windows import OnWindow, over_windows
from cogedit.errors import UsageError
from cogedit.models.attention import Injection
from cogedit.models.device import compute_device
from cogedit.models.first_frame import with_condition
from cogedit.models.ranks import Ranks
from cogedit.models.row_model import RowCall, RowModel
from cogedit.models.rows import EditPrompts, RowPlan, plan_rows
from cogedit.models.sharing import predict_windows
from cogedit.types import WindowPlan
from cogedit.wording import count_of

if TYPE_CHECKING:
    from diffusers import CogVideoXTransformer3DModel


@dataclass(frozen=True)
class Prediction:
    """v of each edit, guided, and of its source if that was wanted, each [B, F, C, H, W]."""

    edit: Tensor
    reference: Tensor | None = None


class Denoiser:
    """v(x_t, t) of some edits at once, with guidance and, where they are given, references.

    The rows of a call are those of `cogedit.models.rows`. A reference row predicts the source's own
    velocity; its keys and values are what the edit rows attend to.

    Args:
        transformer: Inside `run_rows` if there is an injection.
        embeds: Embeddings of the run's prompts, [K, L, D].
        prompts: The prompts of each edit, as indices into `embeds`.
        condition: First frames of the edits, [1 or B, F, C, H, W] from `make_condition`, for a
            transformer that takes them; both sides of guidance have the same.
        reference_condition: Those of the sources, [1 or S, F, C, H, W].
        guidance_scale: 1 means no guidance.
        guided: Timesteps with guidance; None is all of them.
        reused: Those of them at which only the conditional side is predicted, and guided by the
            `difference` of an earlier one.
        injection: How edit rows attend to references, at all timesteps or by timestep; None where
            there are no references, or the transformer's attention processors know by themselves.
        reference_velocity: Whether a caller wants the velocity that the reference rows predict.
        windows: What the transformer sees at a time; None is whole clips.
        on_window: Called after each window.
        ranks: Processes that compute with this one, and have the same transformer.

    Attributes:
        difference: Conditional less unconditional v of each edit when both were last predicted,
            [B, F, C, H, W]; kept where some timestep uses it again. A run that goes on at such a
            timestep sets it.

    Raises:
        UsageError: The injection's window holds no layer of this model, or a prompt is not among
            the embeddings.
    """

    def __init__(
        self,
        transformer: CogVideoXTransformer3DModel,
        *,
        embeds: Tensor,
        prompts: Sequence[EditPrompts],
        condition: Tensor | None = None,
        reference_condition: Tensor | None = None,
        guidance_scale: float = 1.0,
        guided: frozenset[int] | None = None,
        reused: frozenset[int] = frozenset(),
        injection: Injection | Mapping[int, Injection] | None = None,
        reference_velocity: bool = False,
        windows: WindowPlan | None = None,
        on_window: OnWindow | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        for one in [injection] if isinstance(injection, Injection) else (injection or {}).values():
            one.window(len(transformer.transformer_blocks))
        last = max(index or 0 for edit in prompts for index in edit.indices)
        if last >= len(embeds):
            raise UsageError(f"an edit has the prompt {last}, and there are {len(embeds)}, from 0")
        self.transformer = transformer
        self.guidance_scale = guidance_scale
        self.difference: Tensor | None = None
        self._embeds = embeds.to(compute_device(transformer), transformer.dtype)
        self._prompts = tuple(prompts)
        self._condition = condition
        self._reference_condition = reference_condition
        self._guided = guided
        self._reused = reused
        self._injection = injection
        self._reference_velocity = reference_velocity
        self._windows = windows
        self._on_window = on_window
        self._ranks = ranks
        self._model = RowModel(transformer)

    def __call__(
        self, sample: Tensor, timestep: int, reference: Tensor | None = None
    ) -> Prediction:
        """Predict v at x_t, one sample per edit, [B, F, C, H, W], in its dtype and on its device.

        The reference is x*_t, one per source, [S, F, C, H, W]; None runs the edit rows alone. In
        windows, an edit row attends to the same frames of its source.

        Raises:
            UsageError: There are not as many samples as edits.
            ValueError: The timestep uses a difference of before, and there is none.
        """
        if len(sample) != len(self._prompts):
            edits = count_of(len(self._prompts), "edit")
            raise UsageError(
                f"found {count_of(len(sample), 'sample')}, expected one for each of {edits}"
            )
        plan = plan_rows(
            self._prompts,
            guided=self._predicts_both(timestep),
            referenced=reference is not None,
            reference_velocity=self._reference_velocity,
        )

        def ask(windows: Iterable[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
            call, embeds = self._call(plan, timestep), self._embeds[plan.prompts]
            if self._ranks is None:
                rows: Iterable[Tensor] = (self._model(call, embeds, *window) for window in windows)
            else:
                rows = predict_windows(self._ranks, self._model, call, embeds, list(windows))
            return (self._joined(plan, v, timestep) for v in rows)

        edit, *others = over_windows(
            ask,
            *self._conditioned(sample, reference),
            timestep=timestep,
            plan=self._windows,
            on_window=self._on_window,
        )
        if not self._predicts_both(timestep):
            edit = self._with_difference(edit, timestep)
        elif self._reused:
            self.difference = others.pop()
        return Prediction(edit, *others)

    def _is_guided(self, timestep: int) -> bool:
        return self.guidance_scale != 1 and (self._guided is None or timestep in self._guided)

    def _predicts_both(self, timestep: int) -> bool:
        return self._is_guided(timestep) and timestep not in self._reused

    def _joined(self, plan: RowPlan, v: Tensor, timestep: int) -> tuple[Tensor, ...]:
        """Make v of each edit of v of all rows, then of its source if that was wanted.

        Last comes what guidance may use again.
        """
        edit = v[list(plan.conditional)]
        joined = [v[list(plan.reference)]] if plan.reference_velocity else []
        if self._predicts_both(timestep):
            # Classifier-free guidance (arXiv 2207.12598, equation 6), as diffusers scales it.
            unconditional = v[list(plan.unconditional)]
            difference = edit - unconditional
            edit = unconditional + self.guidance_scale * difference
            joined += [difference] if self._reused else []
        return edit, *joined

    def _with_difference(self, conditional: Tensor, timestep: int) -> Tensor:
        """Guide v of the conditional side by the difference of an earlier timestep."""
        if not self._is_guided(timestep):
            return conditional
        if self.difference is None:
            raise ValueError(f"no difference of guidance to use again at timestep {timestep}")
        return conditional + (self.guidance_scale - 1) * self.difference

    def rows(
        self, plan: RowPlan, sample: Tensor, timestep: int, reference: Tensor | None = None
    ) -> Tensor:
        """Predict v of each row of a plan in one call, without guidance, as in `__call__`."""
        samples = self._conditioned(sample, reference)
        return self._model(self._call(plan, timestep), self._embeds[plan.prompts], *samples)

    def _conditioned(self, sample: Tensor, reference: Tensor | None) -> list[Tensor]:
        """Return what the transformer sees of samples: with first frames, where it takes them."""
        samples = [with_condition(sample, self._condition)]
        if reference is not None:
            samples.append(with_condition(reference, self._reference_condition))
        return samples

    def _call(self, plan: RowPlan, timestep: int) -> RowCall:
        injection = self._injection if plan.references else None
        if isinstance(injection, Mapping):
            injection = injection[timestep]
        return RowCall(plan, timestep, injection)

    def velocity(self, sample: Tensor, timestep: int) -> Tensor:
        """Predict v of samples [B, F, C, H, W] without a reference, as an inversion wants it."""
        return self(sample, timestep).edit
