"""The blocks of CogVideoX over rows of edits and the rows of the source that they attend to.

Inside `run_rows` every block computes what `CogVideoXBlock.forward` does, with the same modules in
the same order. The plan of a call's rows comes with the call, through the transformer's
`attention_kwargs`, and for the rows that are references what nobody needs is left out:

- the rows of a layer run in chunks, so that memory holds one chunk's activations; the references'
  keys and values live as long as their layer;
- a reference row stops after the last layer with injection, where it gives its keys and values and
  nothing else, unless the plan asks for the velocity that it predicts.

Of several processes each runs the chunks that hold a row of its part, and leaves the others.

`CogVideoXTransformer3DModel.forward` stays in charge of patches, positions, the time embedding and
the output, so all variants of the model go through, and hooks around a block (offloading) meet one
call of it per step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, TypedDict, cast

import torch
from torch import Tensor, nn

from cogedit.errors import UsageError
from cogedit.models.attention import (
    AttentionModule,
    Heads,
    Injection,
    Rotary,
    attend_rows,
    output,
    project,
    project_reference,
)
from cogedit.models.compiler import compile_options, compiling
from cogedit.models.kernels import attention
from cogedit.models.rows import RowPlan, rows_at_a_time
from cogedit.models.ulysses import Part, Team
from cogedit.types import TransformerSettings

COMPILER = "inductor"
"""Backend of `torch.compile`."""

Gates = tuple[Tensor, Tensor]
Norm = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]


class CallOptions(TypedDict, total=False):
    """What a call hands to every layer, as its `attention_kwargs`.

    `plan` and `injection` come with reference rows, `part` where other processes compute, too.
    """

    plan: RowPlan
    injection: Injection
    part: Part


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
    out = output(block.attn1, attended)
    image = image + gates[0] * out[:, length:]
    text = text + gates[1] * out[:, :length]
    norm_image, norm_text, gate, text_gate = block.norm2(image, text, temb)
    fed = block.ff(torch.cat([norm_text, norm_image], dim=1))
    return image + gate * fed[:, length:], text + text_gate * fed[:, :length]


Before = Callable[[Block, Tensor, Tensor, Tensor, Rotary | None], tuple[Heads, Gates]]
After = Callable[[Block, Tensor, Tensor, Tensor, Tensor, Gates], tuple[Tensor, Tensor]]


@cache
def _compiled(backend: str, **options: bool) -> tuple[Before, After]:
    """Both halves compiled; one graph serves all layers, since their weights are its inputs.

    The attention between them stays outside: it is one kernel anyway, and what a row attends to may
    change from step to step without a new graph.
    """
    # Other backends, which show the graphs alone, take no options.
    told: dict[str, Any] | None = {**options} if backend == "inductor" else None
    before: Before = torch.compile(before_attention, backend=backend, options=told)
    after: After = torch.compile(after_attention, backend=backend, options=told)
    return before, after


@dataclass
class _State:
    """What a layer works on: image [rows, S, D] and text [rows, L, D] of all rows, in place."""

    image: Tensor
    text: Tensor
    temb: Tensor
    rotary: Rotary | None
    part: Part | None

    @property
    def team(self) -> Team | None:
        """Who else has tokens of these rows."""
        return None if self.part is None else self.part.team

    @property
    def text_length(self) -> int:
        """Tokens of a row's text in attention."""
        return self.text.shape[1] if self.team is None else self.team.num_text

    def of(self, rows: slice | list[int]) -> tuple[Tensor, Tensor]:
        """Return image and text of some rows."""
        return self.image[rows], self.text[rows]


class Layer:
    """Takes the place of the `forward` of one `CogVideoXBlock`, the transformer's `number`-th."""

    def __init__(
        self, block: nn.Module, number: int, num_layers: int, settings: TransformerSettings
    ) -> None:
        self._block = cast(Block, block)
        self._number = number
        self._num_layers = num_layers
        self._settings = settings
        self._before: Before = before_attention
        self._after: After = after_attention
        if settings.compile:
            self._before, self._after = _compiled(COMPILER, **compile_options(block))

    def __call__(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Rotary | None = None,
        attention_kwargs: CallOptions | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run the layer on image tokens [rows, S, D] and text tokens [rows, L, D], edits first.

        The signature is that of the block. Without a plan every row attends to itself alone. Rows
        that are done come back as they were. Layers pass a team's own tokens to each other.
        """
        options = attention_kwargs or {}
        part = options.get("part")
        team = None if part is None else part.team
        image, text, rotary = hidden_states, encoder_hidden_states, image_rotary_emb
        if team is not None:
            rotary = team.own_rotary(rotary)
        if team is not None and self._number == 0:
            image, text = team.own(image), team.own(text)
        state = _State(*self._owned(image, text), temb, rotary, part)
        self._run(options, state)
        if team is not None and self._number == self._num_layers - 1:
            return team.whole(state.image), state.text
        return state.image, state.text

    def chunk_size(self, num_tokens: int, device: torch.device) -> int:
        """Return how many rows of so many tokens run at a time."""
        return rows_at_a_time(self._settings.max_rows, num_tokens=num_tokens, device=device.type)

    def _run(self, options: CallOptions, state: _State) -> None:
        """Run the rows that this layer has to."""
        if "plan" not in options:
            self._run_alone(range(len(state.image)), state)
            return
        plan, injection = options["plan"], options["injection"]
        window = injection.window(self._num_layers)
        if self._number in window and injection.strength > 0:
            self._run_with_references(plan, injection, state)
        elif self._number < window.stop or plan.reference_velocity:
            references = range(len(plan.edits), plan.num_rows)
            self._run_alone([*plan.running(self._number), *references], state)
        else:
            self._run_alone(plan.running(self._number), state)

    def _run_alone(self, rows: Sequence[int], state: _State) -> None:
        """Run rows that attend to themselves alone."""
        for chunk in self._chunks(rows, state):
            self._run_chunk(chunk, state)

    def _run_chunk(self, rows: Sequence[int], state: _State) -> Heads:
        own, gates = self._first_half(rows, state)
        attended = attention(*own, backend=self._settings.attention_backend)
        self._second_half(rows, state, attended, gates)
        return own

    def _run_with_references(self, plan: RowPlan, injection: Injection, state: _State) -> None:
        """Run references chunk by chunk, and after each the edit rows that attend to it."""
        is_last = self._number == injection.window(self._num_layers).stop - 1
        for row, layer in enumerate(plan.parts_in, start=1):
            if layer == self._number:
                state.image[row], state.text[row] = state.image[0], state.text[0]
                self._run_alone([row], state)
        running = plan.running(self._number)
        for rows in self._chunks(range(len(plan.edits), plan.num_rows), state):
            if is_last and not plan.reference_velocity:
                references = self._last_keys_and_values(rows, state, injection)
            else:
                references = self._run_chunk(rows, state)
            attending = [row for row in running if plan.reference_of[row] in rows]
            for edits in self._chunks(attending, state):
                targets = [rows.index(plan.reference_of[row]) for row in edits]
                own, gates = self._first_half(edits, state)
                attended = attend_rows(
                    own,
                    references,
                    targets,
                    injection=injection,
                    text_length=state.text_length,
                    backend=self._settings.attention_backend,
                )
                self._second_half(edits, state, attended, gates)

    def _last_keys_and_values(
        self, rows: Sequence[int], state: _State, injection: Injection
    ) -> Heads:
        """Return what edit rows attend to of references that go no further."""
        image, text = state.of(_index(rows))
        norm_image, norm_text, *_ = self._block.norm1(image, text, state.temb)
        tokens = torch.cat([norm_text, norm_image], dim=1)
        own = project_reference(
            self._block.attn1, tokens, text.shape[1], state.rotary, mode=injection.mode
        )
        return own if state.team is None else state.team.to_heads(own)

    def _first_half(self, rows: Sequence[int], state: _State) -> tuple[Heads, Gates]:
        image, text = state.of(_index(rows))
        self._mark(image, text)
        own, gates = self._before(self._block, image, text, state.temb, state.rotary)
        return (own if state.team is None else state.team.to_heads(own)), gates

    def _second_half(
        self, rows: Sequence[int], state: _State, attended: Tensor, gates: Gates
    ) -> None:
        """Finish some rows and put them back among the others."""
        if state.team is not None:
            attended = state.team.to_tokens(attended)
        index = _index(rows)
        image, text = state.of(index)
        self._mark(image, text, attended)
        out = self._after(self._block, image, text, state.temb, attended, gates)
        if len(rows) == len(state.image):
            state.image, state.text = out
        else:
            state.image[index], state.text[index] = out

    def _mark(self, *tensors: Tensor) -> None:
        """Tell the compiler that the number of rows may change with the next call."""
        if self._settings.compile:
            for tensor in tensors:
                if len(tensor) > 1:
                    torch._dynamo.maybe_mark_dynamic(tensor, 0)

    def _owned(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return both for writing in place; the first layer gets two views of one tensor."""
        if self._settings.compile and len(image) == 1:
            # A view of one row counts as contiguous with a stride of its own between rows, and for
            # that stride both halves would be compiled once more.
            form = torch.contiguous_format
            return image.clone(memory_format=form), text.clone(memory_format=form)
        return image.contiguous(), text.contiguous()

    def _chunks(self, rows: Sequence[int], state: _State) -> Iterator[Sequence[int]]:
        """Yield rows that run at a time, of those that this process computes."""
        # Of whole rows, as the division among teams counts: all ranks choose the same chunks.
        team = state.team
        lengths = (state.image.shape[1], state.text.shape[1])
        num_tokens = sum(lengths) if team is None else team.num_image + team.num_text
        size = self.chunk_size(num_tokens, state.image.device)
        for first in range(0, len(rows), size):
            chunk = rows[first : first + size]
            if state.part is None or not state.part.rows.isdisjoint(chunk):
                yield chunk


def _index(rows: Sequence[int]) -> slice | list[int]:
    """Return a slice where the rows are neighbours: it needs no copy."""
    first, last = rows[0], rows[-1]
    return slice(first, last + 1) if last - first == len(rows) - 1 else list(rows)


@contextmanager
def run_rows(transformer: nn.Module, settings: TransformerSettings | None = None) -> Iterator[None]:
    """Run the blocks of a `CogVideoXTransformer3DModel` row by row inside a `with` body.

    The blocks' own `forward` comes back in every case, also when the body raises.

    Raises:
        UsageError: The blocks have processors of another kind or this `forward` already, or cannot
            be compiled.
    """
    settings = settings or TransformerSettings()
    blocks = list(cast(nn.ModuleList, transformer.transformer_blocks))
    with ExitStack() as stack:
        for number, block in enumerate(blocks):
            name = type(cast(AttentionModule, block.attn1).processor).__name__
            if name != "CogVideoXAttnProcessor2_0":
                raise UsageError(
                    f"this transformer has attention processors of another kind ({name})",
                    hint="leave the body of OverrideAttnProcessors, or "
                    "call `transformer.unfuse_qkv_projections()` first",
                )
            layer = Layer(block, number, len(blocks), settings)
            stack.enter_context(_replaced_forward(block, layer))
        if settings.compile:
            stack.enter_context(compiling())
        yield


def runs_rows(transformer: nn.Module) -> bool:
    """Whether `run_rows` is around a transformer."""
    return isinstance(_first_forward(transformer), Layer)


def chunk_size(transformer: nn.Module, num_tokens: int) -> int:
    """Return how many rows of so many tokens a layer runs at a time, inside of `run_rows`."""
    layer = _first_forward(transformer)
    return cast(Layer, layer).chunk_size(num_tokens, cast(torch.device, transformer.device))


def _first_forward(transformer: nn.Module) -> object:
    """Return what the first block computes with; None is the method of its class."""
    holder, name = _own_forward(cast(nn.ModuleList, transformer.transformer_blocks)[0])
    return vars(holder).get(name)


@contextmanager
def _replaced_forward(module: nn.Module, forward: Layer) -> Iterator[None]:
    """Replace what a module computes, beneath the hooks that diffusers may have put around it."""
    holder, name = _own_forward(module)
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


def _own_forward(module: nn.Module) -> tuple[object, str]:
    """Find where a module's own `forward` hangs: the object and the name of its attribute.

    A hook (`diffusers.hooks.HookRegistry.register_hook`) replaces `module.forward` by a wrapper,
    which calls what was there before through its `HookFunctionReference`. Of several hooks the
    first registered is the innermost, so the block's own forward hangs in `_fn_refs[0]`: in its
    `forward`, or in its `original_forward` where the hook computes by itself (`new_forward`) and
    calls the original from there. Replacing it there keeps the order of a block under group
    offload: weights arrive, the layer runs, weights leave. Without hooks the attribute `forward` of
    the module itself is set, over the method of its class, and deleted again.
    """
    references = getattr(getattr(module, "_diffusers_hook", None), "_fn_refs", None)
    if not references:
        return module, "forward"
    innermost = references[0]
    return innermost, "forward" if innermost.original_forward is None else "original_forward"
