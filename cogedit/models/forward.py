"""The blocks of CogVideoX over rows of edits and the rows of the source that they look at.

Inside `run_rows` every block computes what `CogVideoXBlock.forward` does, with the same modules in
the same order, and for the rows of a batch that are references what nobody needs is left out:

- the rows of a layer run in chunks, so that memory holds one chunk's activations; the references'
  keys and values live as long as their layer;
- a reference row stops after the last layer that looks at it, where it gives its keys and values
  and nothing else, unless the caller asks for what it predicts.

`CogVideoXTransformer3DModel.forward` stays in charge of patches, positions, the time embedding and
the output, so all variants of the model go through, and hooks around a block (offloading) meet one
call of it per step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from cogedit.errors import UsageError, first_line
from cogedit.models.attention import (
    AttentionModule,
    Heads,
    Injection,
    KeyValues,
    attend_rows,
    check_layers,
    project,
    project_reference,
)
from cogedit.models.kernels import attention
from cogedit.models.rows import rows_at_a_time
from cogedit.types import TransformerSettings

COMPILER = "inductor"
"""Backend of `torch.compile`."""

Rotary = tuple[Tensor, Tensor]
Gates = tuple[Tensor, Tensor]
Norm = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]


class Block(Protocol):
    """The part of `CogVideoXBlock` that a layer runs."""

    norm1: Norm
    attn1: AttentionModule
    norm2: Norm
    ff: Callable[[Tensor], Tensor]


def before_attention(
    block: Block, image: Tensor, text: Tensor, temb: Tensor, rotary: Rotary | None
) -> tuple[Heads, Gates]:
    """Return queries, keys and values of some rows, and the gates of both streams."""
    norm_image, norm_text, gate, text_gate = block.norm1(image, text, temb)
    tokens = torch.cat([norm_text, norm_image], dim=1)
    return project(block.attn1, tokens, text.shape[1], rotary), (gate, text_gate)


def after_attention(
    block: Block,
    image: Tensor,
    text: Tensor,
    temb: Tensor,
    attended: Tensor,
    gates: Gates,
) -> tuple[Tensor, Tensor]:
    """Return what the layer makes of image [rows, S, D] and text [rows, L, D] once it attended."""
    length = text.shape[1]
    out: Tensor = block.attn1.to_out[1](block.attn1.to_out[0](attended.transpose(1, 2).flatten(2)))
    image = image + gates[0] * out[:, length:]
    text = text + gates[1] * out[:, :length]
    norm_image, norm_text, gate, text_gate = block.norm2(image, text, temb)
    fed = block.ff(torch.cat([norm_text, norm_image], dim=1))
    return image + gate * fed[:, length:], text + text_gate * fed[:, :length]


Before = Callable[[Block, Tensor, Tensor, Tensor, Rotary | None], tuple[Heads, Gates]]
After = Callable[[Block, Tensor, Tensor, Tensor, Tensor, Gates], tuple[Tensor, Tensor]]


@cache
def _compiled(backend: str) -> tuple[Before, After]:
    """Both halves compiled; one graph serves all layers, since their weights are its inputs.

    The attention between them stays outside: it is one kernel anyway, and what a row looks at may
    change from step to step without a new graph.
    """
    before: Before = torch.compile(before_attention, backend=backend)
    after: After = torch.compile(after_attention, backend=backend)
    return before, after


@dataclass
class RowRun:
    """What the layers of one transformer share.

    Attributes:
        injection: Which row looks at which; the caller sets it between calls.
        window: First layer with injection, and the one after the last.
        num_layers: Of the transformer.
        settings: How the rows run.
        memory: Of joined keys and values.
    """

    injection: Injection
    window: tuple[int, int]
    num_layers: int
    settings: TransformerSettings
    memory: KeyValues = field(default_factory=KeyValues)

    @property
    def last_layer(self) -> int:
        """The last layer that reference rows take part in."""
        return (self.num_layers if self.injection.reference_velocity else self.window[1]) - 1

    def looks(self, layer: int) -> bool:
        """Whether edit rows look at references in a layer."""
        return self.injection.strength > 0 and self.window[0] <= layer < self.window[1]


@dataclass
class _State:
    """What a layer works on: image [rows, S, D] and text [rows, L, D] of all rows, in place."""

    image: Tensor
    text: Tensor
    temb: Tensor
    rotary: Rotary | None

    def of(self, rows: slice | list[int]) -> tuple[Tensor, Tensor]:
        """Return image and text of some rows."""
        return self.image[rows], self.text[rows]


class Layer:
    """Takes the place of one block's `forward`.

    Args:
        block: A `CogVideoXBlock`.
        number: Its number.
        run: What all layers share.
    """

    def __init__(self, block: nn.Module, number: int, run: RowRun) -> None:
        self._module = block
        self._block = cast(Block, block)
        self._number = number
        self._run = run
        self._before: Before = before_attention
        self._after: After = after_attention
        if run.settings.compile:
            self._before, self._after = _compiled(COMPILER)

    def __call__(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Rotary | None = None,
        attention_kwargs: None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run the layer on image tokens [rows, S, D] and text tokens [rows, L, D], edits first.

        Args:
            hidden_states: Image tokens.
            encoder_hidden_states: Text tokens.
            temb: Embedding of the timestep, [1, E] for all rows.
            image_rotary_emb: (cos, sin), each [S, head_dim].
            attention_kwargs: For the block's signature.

        Returns:
            Both, with rows that are done left as they are.
        """
        total = len(hidden_states)
        targets = self._run.injection.references(total)
        num_edits = len(targets) or total
        running = total if self._number <= self._run.last_layer else num_edits
        state = _State(*self._owned(hidden_states, encoder_hidden_states), temb, image_rotary_emb)
        if not targets or running == num_edits or not self._run.looks(self._number):
            for rows in self._chunks(range(running), state):
                self._plain(rows, state)
            return state.image, state.text
        for rows in self._chunks(range(num_edits, total), state):
            references = self._reference(rows, state)
            looking = [row for row, target in enumerate(targets) if target in rows]
            for edits in self._chunks(looking, state):
                seen = [rows.index(targets[row]) for row in edits]
                self._edit(edits, state, references, seen)
        self._run.memory.forget()
        return state.image, state.text

    def _plain(self, rows: Sequence[int], state: _State) -> None:
        """Run rows that attend to themselves alone."""
        image, text = state.of(_index(rows))
        own, gates = self._first_half(image, text, state)
        attended = attention(*own, backend=self._run.settings.attention_backend)
        self._second_half(rows, state, attended, gates)

    def _reference(self, rows: Sequence[int], state: _State) -> Heads:
        """Run reference rows, as far as they are needed, and return what edit rows see of them."""
        injection = self._run.injection
        image, text = state.of(_index(rows))
        if self._number == self._run.last_layer and not injection.reference_velocity:
            norm_image, norm_text, *_ = self._block.norm1(image, text, state.temb)
            tokens = torch.cat([norm_text, norm_image], dim=1)
            return project_reference(
                self._block.attn1, tokens, text.shape[1], state.rotary, mode=injection.mode
            )
        own, gates = self._first_half(image, text, state)
        attended = attention(*own, backend=self._run.settings.attention_backend)
        self._second_half(rows, state, attended, gates)
        return own

    def _edit(
        self, rows: Sequence[int], state: _State, references: Heads, seen: Sequence[int]
    ) -> None:
        """Run edit rows that also look at references, each at the one of its number in `seen`."""
        image, text = state.of(_index(rows))
        own, gates = self._first_half(image, text, state)
        attended = attend_rows(
            own,
            references,
            seen,
            injection=self._run.injection,
            text_length=text.shape[1],
            backend=self._run.settings.attention_backend,
            memory=self._run.memory,
        )
        self._second_half(rows, state, attended, gates)

    def _first_half(self, image: Tensor, text: Tensor, state: _State) -> tuple[Heads, Gates]:
        self._mark(image, text)
        return self._before(self._block, image, text, state.temb, state.rotary)

    def _second_half(
        self, rows: Sequence[int], state: _State, attended: Tensor, gates: Gates
    ) -> None:
        """Finish some rows and put them back among the others."""
        index = _index(rows)
        image, text = state.of(index)
        self._mark(image, text, attended)
        out = self._after(self._block, image, text, state.temb, attended, gates)
        if len(rows) == len(state.image):
            state.image, state.text = out
        else:
            state.image[index], state.text[index] = out

    def _mark(self, *tensors: Tensor) -> None:
        """Tell the compiler that the number of rows may be another one at the next call."""
        if self._run.settings.compile:
            for tensor in tensors:
                if len(tensor) > 1:
                    torch._dynamo.maybe_mark_dynamic(tensor, 0)

    def _owned(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return both for writing in place, which spares a second copy of all rows.

        The first layer gets views of one tensor, and hooks that skip steps (caches of diffusers)
        compare what went into a block with what came out.
        """
        hooks = getattr(self._module, "_diffusers_hook", None)
        if hooks is not None and any(hook._is_stateful for hook in hooks.hooks.values()):
            return image.clone(), text.clone()
        return image.contiguous(), text.contiguous()

    def _chunks(self, rows: Sequence[int], state: _State) -> Iterator[Sequence[int]]:
        tokens = state.image.shape[1] + state.text.shape[1]
        size = rows_at_a_time(
            self._run.settings.max_rows, num_tokens=tokens, device=state.image.device.type
        )
        for first in range(0, len(rows), size):
            yield rows[first : first + size]


def _index(rows: Sequence[int]) -> slice | list[int]:
    """Return a slice where the rows are neighbours: it needs no copy."""
    first, last = rows[0], rows[-1]
    return slice(first, last + 1) if last - first == len(rows) - 1 else list(rows)


@contextmanager
def run_rows(
    transformer: nn.Module,
    injection: Injection | None = None,
    *,
    layers: tuple[int, int | None] = (0, None),
    settings: TransformerSettings | None = None,
) -> Iterator[Injection]:
    """Run a transformer's blocks row by row for the duration of a `with` body.

    The blocks' own `forward` comes back in every case, also when the body raises.

    Args:
        transformer: A `CogVideoXTransformer3DModel`.
        injection: Which row looks at which and how; change it between calls. None is no looking.
        layers: First layer of the window with injection and the one after its last; None is the
            end.
        settings: How the rows run.

    Yields:
        The injection.

    Raises:
        UsageError: The blocks run otherwise already, the window holds no layer of this model, or
            the blocks cannot be compiled.
    """
    injection = injection or Injection()
    blocks = list(cast(nn.ModuleList, transformer.transformer_blocks))
    window = check_layers(layers, len(blocks))
    run = RowRun(injection, window, len(blocks), settings or TransformerSettings())
    with ExitStack() as stack:
        for number, block in enumerate(blocks):
            name = type(cast(AttentionModule, block.attn1).processor).__name__
            if name != "CogVideoXAttnProcessor2_0":
                raise UsageError(
                    f"this transformer has attention processors of another kind ({name})",
                    hint="leave the body of OverrideAttnProcessors, or "
                    "call `transformer.unfuse_qkv_projections()` first",
                )
            stack.enter_context(_replaced_forward(block, Layer(block, number, run)))
        if run.settings.compile:
            stack.enter_context(_compiler_errors())
        yield injection


@contextmanager
def _compiler_errors() -> Iterator[None]:
    """Turn the errors of the compiler into one sentence.

    Raises:
        UsageError: The blocks cannot be compiled, as on a machine without a C++ compiler.
    """
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        cause: BaseException = getattr(error, "inner_exception", error)
        raise UsageError(
            f"--compile does not work here: {first_line(cause)}", hint="leave --compile out"
        ) from error


@contextmanager
def _replaced_forward(module: nn.Module, forward: Layer) -> Iterator[None]:
    """Replace what a module computes, beneath the hooks that diffusers may have put around it."""
    references = getattr(getattr(module, "_diffusers_hook", None), "_fn_refs", None)
    holder: object = references[0] if references else module
    name = "forward"
    if references and references[0].original_forward is not None:
        name = "original_forward"
    before = vars(holder).get(name)
    if isinstance(before, Layer):
        raise UsageError("run_rows is around this transformer already; it does not nest")
    setattr(holder, name, forward)
    try:
        yield
    finally:
        if before is None:
            delattr(holder, name)
        else:
            setattr(holder, name, before)
