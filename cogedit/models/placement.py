"""Where the weights of the transformer and of T5 are while they run, and in which format.

The weights may stay on the device ("none"), wait in host memory between passes ("model"), or come
block by block, the next one copied while the last one computes ("group"). All three give the same
results. Weights that are stored in fewer bits and cast for each layer do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch
from torch import nn

from cogedit.errors import UsageError
from cogedit.models.device import release_memory
from cogedit.models.quiet import quiet_imports
from cogedit.types import Offload, Weights

if TYPE_CHECKING:
    from diffusers import CogVideoXTransformer3DModel

_CAST: dict[Weights, torch.dtype] = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}

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
    needs = f"{_gb(estimate.weights)} of weights and about {_gb(estimate.activations)} beside them"
    if whole <= usable:
        return "none", f"{name} stays on the device: {needs}, {_gb(free)} free"
    reason = f"{name} comes block by block: {needs} do not fit into {_gb(free)} free"
    if blocks > usable:
        reason += f", and even so it takes about {_gb(blocks)} ({otherwise})"
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


def store_weights(transformer: CogVideoXTransformer3DModel, weights: Weights) -> None:
    """Keep a transformer's weights in another format; each layer's come back while it computes.

    "bf16" and "fp8" are casts; "int8" has a scale for each row of a matrix (torchao's weight-only
    quantisation). Norms, patch embedding and output stay as they are: they are small, and errors
    there reach everything. UsageError for "int8" without torchao.
    """
    if weights == "int8":
        _quantize(transformer)
    else:
        transformer.enable_layerwise_casting(
            storage_dtype=_CAST[weights], compute_dtype=transformer.dtype
        )


def check_weights(weights: Weights, *, compile: bool = False) -> None:
    """Refuse, before anything is loaded, a format that cannot be had, with a UsageError.

    The hooks that cast replace parameters, at which the compiler silently gives up on a block and
    runs it as it is.
    """
    if compile and weights in _CAST:
        raise UsageError(
            f"--compile does not work with --weights {weights}, whose casts cannot be compiled",
            hint="use --weights int8, or leave --compile out",
        )
    if weights == "int8" and find_spec("torchao") is None:
        raise UsageError(
            "--weights int8 needs the package torchao", hint="pip install 'cogedit[torchao]'"
        )


def _quantize(transformer: nn.Module) -> None:
    check_weights("int8")
    with quiet_imports():
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

    def in_a_block(module: nn.Module, name: str) -> bool:
        is_norm = any(part.startswith("norm") for part in name.split("."))
        return isinstance(module, nn.Linear) and "transformer_blocks" in name and not is_norm

    quantize_(transformer, Int8WeightOnlyConfig(version=2), filter_fn=in_a_block)


def place(
    model: nn.Module, device: torch.device, *, offload: Offload, overlap: bool = True
) -> None:
    """Put a stack of blocks, in host memory and in its final format, where it is to be.

    Under "group" on a CUDA device, `overlap` copies the next block while one computes. All weights
    are pinned in host memory for it first, which a single pass does not repay.
    """
    if offload == "none":
        model.to(device)
    elif offload == "group":
        from diffusers.hooks import apply_group_offloading

        # A hook around each block brings its weights before the block runs and drops them after.
        # The hooks learn the order of the blocks in the first pass; from the second one on each
        # block starts the copy of the next on a stream of its own. `record_stream` tells torch's
        # allocator that memory is in use there, so that it does not hand it out too early, and the
        # host need not wait for the copy.
        streams = overlap and device.type == "cuda"
        apply_group_offloading(
            model,
            onload_device=device,
            offload_device=torch.device("cpu"),
            offload_type="block_level",
            num_blocks_per_group=1,
            use_stream=streams,
            record_stream=streams,
        )


@contextmanager
def on_device(
    transformer: CogVideoXTransformer3DModel, device: torch.device, *, offload: Offload
) -> Iterator[None]:
    """Have a transformer on its device for a pass; under "model" it goes back to host memory."""
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
    return sum(_stored(tensor) for tensor in (*module.parameters(), *module.buffers()))


def _stored(tensor: torch.Tensor) -> int:
    """Return the bytes of a tensor; of a quantised one those of the tensors that store it."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.nbytes
    names, _ = tensor.__tensor_flatten__()
    return sum(_stored(getattr(tensor, name)) for name in names)


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
