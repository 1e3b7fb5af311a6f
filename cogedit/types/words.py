"""The words that settings and records take."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from cogedit.schema import Share

ResizeMode = Literal["crop", "pad", "stretch"]
InverseStep = Literal["consistent", "midpoint", "upstream"]
DType = Literal["bf16", "fp16", "fp32"]
Weights = Literal["bf16", "fp8", "int8"]
Offload = Literal["auto", "none", "model", "group"]
Method = Literal["injection", "flow"]
InjectionMode = Literal["concatenate", "queries-keys", "image-queries-keys"]
InjectionTokens = Literal["all", "image", "own-text"]
Solver = Literal["ddim", "dpm++2m", "midpoint"]
AttentionBackend = Literal["native", "cudnn", "flash", "flash3", "sage"]
Window = Annotated[tuple[Share, Share], Meta(description="FIRST:LAST with 0 <= FIRST <= LAST <= 1")]
Composite = Literal["none", "decode", "source"]
Codec = Literal["h264", "h265", "av1", "prores", "ffv1", "png", "gif"]
VideoSize = Literal["clip", "source"]
ComparisonLayout = Literal["row", "column", "wipe", "sheet"]
ArtifactKind = Literal["frames", "latents", "trajectory", "edit"]
