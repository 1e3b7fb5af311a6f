"""Checkpoints that are as published in all but their numbers, which are random.

Configurations, names, shapes, number formats, shards and the tokenizer's files are those of the
published model, so that loading, planning and running are, too. The numbers are normal and of a
scale at which activations stay finite, drawn once and repeated: making 21 GB takes no longer than
writing them.
"""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import sentencepiece
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from torch import nn
from transformers import T5Config, T5EncoderModel

from cogedit.lab.published import TOKENIZER, Published
from cogedit.models.checkpoint import COMPONENTS

SHARD_BYTES = 5_000_000_000
"""Weights in a file, at most."""

_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16}
_NUM_RANDOM = 2**24
_STRIDE = 7_368_787
"""A prime: tensors begin at its multiples in the random numbers, so that no two are the same."""

_TEXTS = Path(__file__).parents[1] / "guide"
"""English for the tokenizer to learn its pieces from."""

Shapes = Mapping[str, tuple[int, ...]]
"""The tensors of a file, by name."""


def make_checkpoint(model: Published, parent: Path) -> Path:
    """Write a checkpoint, or return the one that an earlier call wrote.

    Args:
        model: Which.
        parent: Folder for its folder; it must exist.

    Returns:
        Its folder, in the layout of diffusers.
    """
    folder, unfinished = parent / model.name, parent / f"{model.name}.unfinished"
    if folder.exists():
        return folder
    shutil.rmtree(unfinished, ignore_errors=True)
    for file, config in model.files().items():
        _write_json(unfinished / file, config)
    with torch.device("meta"):
        modules: dict[str, nn.Module] = {
            "transformer": CogVideoXTransformer3DModel.from_config(dict(model.transformer)),
            "vae": AutoencoderKLCogVideoX.from_config(dict(model.vae)),
            "text_encoder": T5EncoderModel(T5Config(**model.text_encoder)),
        }
    numbers = _RandomNumbers(_DTYPES[model.dtype])
    # Writing releases the interpreter's lock, and the files are written side by side.
    with ThreadPoolExecutor() as pool:
        writing = [
            pool.submit(numbers.write, path, shapes)
            for part, module in modules.items()
            for path, shapes in _files(unfinished / part, COMPONENTS[part][1], module, numbers)
        ]
        _write_tokenizer(unfinished / "tokenizer")
        for file_written in writing:
            file_written.result()
    return unfinished.rename(folder)


class _RandomNumbers:
    """Normal numbers of one format, drawn once, that tensors of any size are filled with."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._normal = torch.randn(_NUM_RANDOM, generator=torch.Generator().manual_seed(0))
        self._scaled = {
            power: _bytes_of(self._normal * 2.0**power, dtype) for power in range(-9, 1)
        }
        self._ones = _bytes_of(torch.ones(_NUM_RANDOM), dtype)

    def write(self, path: Path, shapes: Shapes) -> None:
        """Write a safetensors file."""
        size, place = self.dtype.itemsize, 0
        letters = {dtype: name for name, dtype in _DTYPES.items()}[self.dtype]
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        for name, shape in shapes.items():
            end = place + math.prod(shape) * size
            header[name] = {"dtype": letters, "shape": shape, "data_offsets": (place, end)}
            place = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for index, (name, shape) in enumerate(shapes.items(), 1):
                for piece in self._pieces(name, shape, start=index * _STRIDE % _NUM_RANDOM):
                    file.write(piece)

    def _pieces(self, name: str, shape: tuple[int, ...], *, start: int) -> Iterator[memoryview]:
        """Yield the bytes of a tensor.

        Norms have weights of 1, as when training starts. What is random has the scale at which a
        layer keeps that of its input, to a power of two. Biases are random, too: a device that adds
        zeros looks faster than it is.
        """
        size, left = self.dtype.itemsize, math.prod(shape) * self.dtype.itemsize
        source, place = self._ones, 0
        if not (len(shape) == 1 and name.endswith("weight")):
            fan_in = math.prod(shape[1:]) if len(shape) > 1 else 2**16
            fan_in = 1 if name.startswith("shared.") else fan_in  # a row of it is a token's input
            source = self._scaled[max(-9, min(0, round(-math.log2(fan_in) / 2)))]
            place = start * size
        while left:
            piece = source[place : place + left]
            yield piece
            left, place = left - len(piece), 0


def _bytes_of(numbers: torch.Tensor, dtype: torch.dtype) -> memoryview:
    return memoryview(numbers.to(dtype).view(torch.uint8).numpy())  # type: ignore[arg-type]


def _files(
    folder: Path, stem: str, module: nn.Module, numbers: _RandomNumbers
) -> Iterator[tuple[Path, Shapes]]:
    """Yield the weight files of a component, with the index where there are several."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = total = 0
    for name, tensor in module.state_dict().items():
        if name == "encoder.embed_tokens.weight":  # the same as `shared.weight`
            continue
        num_bytes = tensor.numel() * numbers.dtype.itemsize
        if size + num_bytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tuple(tensor.shape)
        size, total = size + num_bytes, total + num_bytes
    if len(shards) == 1:
        yield folder / f"{stem}.safetensors", shards[0]
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        weight_map |= dict.fromkeys(shard, file)
        yield folder / file, shard
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / f"{stem}.safetensors.index.json", index)


def _write_tokenizer(folder: Path) -> None:
    """Write a SentencePiece vocabulary of some hundred pieces, as T5's is but for its length."""
    texts = [page.read_text(encoding="utf-8") for page in sorted(_TEXTS.glob("*.md"))]
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in texts for line in text.splitlines()),
        model_writer=written,
        vocab_size=1000,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        minloglevel=2,
    )
    _write_json(folder / "tokenizer_config.json", TOKENIZER)
    (folder / "spiece.model").write_bytes(written.getvalue())


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
