"""Where the weights of the transformer and of T5 are while they run, and in which format.

The weights may stay on the device ("none"), wait in host memory between passes ("model"), or come
block by block, the next one copied while the last one computes ("group"). All three give the same
results. Weights that are stored in fewer bits and cast for each layer do not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional

from cogedit.errors import UsageError
from cogedit.models.device import being_current, release_memory
from cogedit.models.pinned import pin_or_not
from cogedit.types import Offload, Weights
from cogedit.wording import show_gb

if TYPE_CHECKING:
    from diffusers import CogVideoXTransformer3DModel

_CAST: dict[Weights, torch.dtype] = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
_STAYS = re.compile("patch_embed|norm|^proj_out$")
"""Names of the modules that stay in the run's dtype, as `enable_layerwise_casting` leaves them."""

_CPU = torch.device("cpu")

RESERVE = 0.05
"""Share of the free memory that is left alone: kernels ask for workspace, and blocks leave gaps."""


@dataclass(frozen=True)
class MemoryEstimate:
    """What a pass of a model needs, in bytes.

    Attributes:
        weights: Of all layers.
        resident: What is on the device at once under group offload: the parts outside the blocks,
            one block that computes and one that is being copied.
        activations: Beside the weights, at most.
    """

    weights: int
    resident: int
    activations: int

    @classmethod
    def of(cls, model: nn.Module, activations: int) -> MemoryEstimate:
        """Measure a stack of blocks that is loaded, wherever it is."""
        lists = (child for child in model.children() if isinstance(child, nn.ModuleList))
        blocks = [_bytes(block) for child in lists for block in child]
        weights = _bytes(model)
        outside = weights - sum(blocks)
        return cls(weights, outside + 2 * max(blocks, default=0), activations)


def choose_offload(
    estimate: MemoryEstimate, *, free: int, name: str, otherwise: str
) -> tuple[Offload, str]:
    """Choose the fastest placement that fits: "none" or "group", and a sentence that says why.

    ("model" needs as much during a pass as "none"; it serves shared devices.)

    Args:
        estimate: What a pass needs.
        free: Bytes of the device that are free.
        name: What the model is called in the sentence, which has no full stop.
        otherwise: What helps where not even its blocks fit.
    """
    usable = free * (1 - RESERVE)
    whole, blocks = (part + estimate.activations for part in (estimate.weights, estimate.resident))
    needs = f"{show_gb(estimate.weights)} of weights and about {show_gb(estimate.activations)} "
    needs += "beside them"
    if whole <= usable:
        return "none", f"{name} stays on the device: {needs}, {show_gb(free)} free"
    reason = f"{name} comes block by block: {needs} do not fit into {show_gb(free)} free"
    if blocks > usable:
        reason += f", and even so it takes about {show_gb(blocks)} ({otherwise})"
    return "group", reason


def free_memory(device: torch.device) -> int:
    """Return the bytes of a device that this process may still take.

    On a CUDA device, what torch has reserved and no tensor uses is free to it, whatever the driver
    says. Other devices share the memory of the host, or what a container leaves of it.
    """
    if device.type != "cuda":
        return _free_host_memory()
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free) + unused


def _free_host_memory() -> int:
    free = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):  # no container, or one without a limit
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        pages = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # The page cache goes when memory is asked for.
        free = min(free, max(0, limit - used + int(pages["inactive_file"])))
    return free


class CastLinear(nn.Linear):
    """A matrix that is stored in fewer bits and cast to the dtype of what it multiplies.

    The cast is part of the product, so the compiler takes it into its graph. diffusers' layerwise
    casting gives the same results, but replaces parameters in hooks, which no graph can hold.
    """

    @classmethod
    def of(cls, linear: nn.Linear, dtype: torch.dtype) -> CastLinear:
        """Store a matrix and its bias in another dtype."""
        cast = cls(linear.in_features, linear.out_features, device="meta")
        cast.weight, cast.bias = linear.weight, linear.bias
        return cast.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply as `nn.Linear` does."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return functional.linear(x, self.weight.to(x.dtype), bias)


class ScaledLinear(nn.Linear):
    """A matrix W that is stored as 8-bit integers Q with a scale s for each row: W = diag(s) Q.

    The scale is applied to the product, so that each row of Q counts in full: x W^T = (x Q^T) s.
    """

    scale: Tensor

    @classmethod
    def of(cls, linear: nn.Linear) -> ScaledLinear:
        """Round a matrix; its largest number in each row becomes 127 or -128. The bias stays."""
        made = cls(linear.in_features, linear.out_features, device="meta")
        weight = linear.weight.detach().float()
        smallest = torch.finfo(torch.float32).tiny  # of a row of zeros
        scale = (weight.abs().amax(dim=1) / 127.5).clamp(min=smallest).to(linear.weight.dtype)
        rounded = (weight / scale.float()[:, None]).round_().clamp_(-128, 127).to(torch.int8)
        made.weight = nn.Parameter(rounded, requires_grad=False)
        made.bias = linear.bias
        made.register_buffer("scale", scale)
        return made

    def forward(self, x: Tensor) -> Tensor:
        """Multiply as `nn.Linear` does."""
        product = functional.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        return product if self.bias is None else product + self.bias.to(x.dtype)


def store_weights(transformer: CogVideoXTransformer3DModel, weights: Weights) -> None:
    """Keep a transformer's weights in another format; each layer's come back while it computes.

    "bf16" and "fp8" are casts; "int8" has a scale for each row of a matrix. Norms, patch embedding
    and output stay as they are: they are small, and errors there reach everything. So do, with
    "int8", the few matrices outside the blocks.
    """
    for name, module in list(transformer.named_modules()):
        if not isinstance(module, nn.Linear) or _STAYS.search(name):
            continue
        if weights != "int8":
            transformer.set_submodule(name, CastLinear.of(module, _CAST[weights]))
        elif "transformer_blocks" in name:
            transformer.set_submodule(name, ScaledLinear.of(module))


def check_weights(weights: Weights, *, device: torch.device = _CPU, compile: bool = False) -> None:
    """Refuse, before anything is loaded, a format that cannot be had, with a UsageError."""
    if weights == "fp8" and device.type == "mps":
        raise UsageError(
            "--weights fp8 needs a device with 8-bit floats, which mps does not have",
            hint="use --dtype bf16, or --weights int8",
        )
    if weights == "fp8" and compile and device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if (major, minor) < (8, 9):  # Triton knows this format from there on; torch itself always
            raise UsageError(
                f"--compile --weights fp8 needs a GPU of compute capability 8.9 or newer; this one "
                f"has {major}.{minor}",
                hint="use --compile --weights int8, or leave --compile out",
            )


def place(
    model: nn.Module, device: torch.device, *, offload: Offload, overlap: bool = True
) -> str | None:
    """Put a stack of blocks, in host memory and in its final format, where it is to be.

    Under "group" on a CUDA device, `overlap` copies the next block while one computes. All weights
    are pinned in host memory for it first, which a single pass does not repay. Where the system
    does not let so much be pinned, nothing is, and a sentence is returned that says so.
    """
    problem = None
    if offload == "none":
        model.to(device)
    elif offload == "group":
        from diffusers.hooks import apply_group_offloading

        # A hook around each block brings its weights before the block runs and drops them after.
        # The hooks learn the order of the blocks in the first pass; from the second one on each
        # block starts the copy of the next on a stream of its own. Before a block's weights go, the
        # host waits until it has computed. With `record_stream` it would not, and run ahead: the
        # copies take a tenth of the time of the blocks, so that nearly all would be on the device.
        streams = overlap and device.type == "cuda"
        with being_current(device):  # which the stream belongs to
            if streams:
                problem = pin_or_not(model)
                streams = problem is None
            apply_group_offloading(
                model,
                onload_device=device,
                offload_device=torch.device("cpu"),
                offload_type="block_level",
                num_blocks_per_group=1,
                use_stream=streams,
            )
    return problem


@contextmanager
def on_device(
    transformer: CogVideoXTransformer3DModel, device: torch.device, *, offload: Offload
) -> Iterator[None]:
    """Have a transformer on its device for a pass; under "model" it goes back to host memory.

    A CUDA device is the current one meanwhile.
    """
    with being_current(device):
        if offload != "model":
            yield
            return
        transformer.to(device)
        try:
            yield
        finally:
            transformer.to("cpu")
            release_memory(device)


def _bytes(module: nn.Module) -> int:
    held = (*module.parameters(), *module.buffers())
    return sum(tensor.nbytes for tensor in held)
