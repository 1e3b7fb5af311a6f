"""LoRA files with random matrices, made for a pipeline."""

import torch
from safetensors.torch import load_file, save_file

RANK = 4
MODULES = (
    *(f"transformer_blocks.{n}.attn1.{name}" for n in (0, 1) for name in ("to_q", "to_out.0")),
    "transformer_blocks.0.ff.net.0.proj",
    "transformer_blocks.1.norm1.linear",
    "patch_embed.text_proj",
    "proj_out",
)


def matrices(folder, *, seed=0, modules=MODULES):
    """A and B of each module of a pipeline's transformer, by its name."""
    generator = torch.Generator().manual_seed(seed)
    [file] = (folder / "transformer").glob("*.safetensors")
    shapes = {name: tensor.shape for name, tensor in load_file(file).items()}
    return {
        module: (
            torch.randn(RANK, *shapes[f"{module}.weight"][1:], generator=generator),
            torch.randn(shapes[f"{module}.weight"][0], RANK, generator=generator),
        )
        for module in modules
    }


def diffusers(made):
    """Name matrices as diffusers does."""
    return {
        f"transformer.{module}.lora_{part}.weight": tensor
        for module, pair in made.items()
        for part, tensor in zip("AB", pair, strict=True)
    }


def write_lora(file, folder, *, seed=0, metadata=None):
    """Write a LoRA whose changes are about as large as the weights of a tiny pipeline."""
    made = {name: tensor / 5 for name, tensor in diffusers(matrices(folder, seed=seed)).items()}
    save_file(made, file, metadata)
    return file
