"""What people name, or have, in place of a pipeline that edits videos, and what mends it."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cogedit.errors import ModelError, plain
from cogedit.models.configs import Config, decode_config
from cogedit.models.folder import FOLDERS
from cogedit.models.hub import PUBLISHED, cached_models

EXAMPLE = "for example --model zai-org/CogVideoX-5b"

TEXT_TO_VIDEO = ("CogVideoXPipeline", "CogVideoXVideoToVideoPipeline")
"""Classes of pipelines whose parts are those of text to video."""

IMAGE_TO_VIDEO = "CogVideoXImageToVideoPipeline"
"""Class of pipelines whose transformer takes a first frame, too."""

_KINDS = {
    "CogVideoXFunControlPipeline": "a control model (Fun)",
    "CogVideoX_Fun_Pipeline_Control": "a control model (Fun)",
    "CogVideoX_Fun_Pipeline_Inpaint": "an inpainting model (Fun)",
}


def check_kind(name: str, index: Config) -> None:
    """Refuse a pipeline of another class, by its kind."""
    found = index.get("_class_name")
    if found not in (*TEXT_TO_VIDEO, IMAGE_TO_VIDEO):
        kind = _KINDS.get(found) if isinstance(found, str) else None
        also = "" if kind is None else f" ({plain(found)})"
        raise ModelError(
            f"{name} is {kind or f'a {plain(found)}'}{also}; expected a CogVideoXPipeline "
            f"(text to video) or a {IMAGE_TO_VIDEO}",
            hint=EXAMPLE,
        )


def check_channels(
    name: str, index: Config, transformer: Config, *, latent_channels: int, file: Path | None
) -> None:
    """Refuse a transformer of other channels than one of its pipeline's kind has.

    Models that also take an image or a video have them stacked on the latents' channels.

    Args:
        name: Of the pipeline.
        index: Its `model_index.json`.
        transformer: The transformer's configuration.
        latent_channels: Of the pipeline's VAE.
        file: Where the transformer is from, if not from the pipeline.
    """
    takes, makes = transformer["in_channels"], transformer["out_channels"]
    from_image = index.get("_class_name") == IMAGE_TO_VIDEO
    expected = 2 * latent_channels if from_image else latent_channels
    if takes == expected and makes == latent_channels:
        return
    # Control models take as many channels as image-to-video models, which have one of these.
    has_frame = transformer.get("use_learned_positional_embeddings") or transformer.get(
        "ofs_embed_dim"
    )
    kind = {
        latent_channels: "of a text-to-video model",
        2 * latent_channels: "of an image-to-video model (I2V)"
        if has_frame
        else "of a control model (Fun), or of an image-to-video model (I2V) without its positions",
        2 * latent_channels + 1: "of an inpainting model (Fun)",
    }.get(takes if isinstance(takes, int) else 0, "of another VAE, or of a control model")
    where = f"The transformer of {name}" if file is None else f"The transformer {file}"
    hint = EXAMPLE
    if takes == latent_channels or (takes == 2 * latent_channels and has_frame):
        temporal, first_frame = transformer.get("patch_size_t"), takes != latent_channels
        model = published_like(temporal, first_frame=first_frame)
        hint = f"name a pipeline of its kind: --model {model}"
        hint += "" if file is None else f" --transformer {shlex.quote(str(file))}"
    raise ModelError(
        f"{where} is {kind}: it takes {takes} channels and makes {makes}; expected {expected} and "
        f"{latent_channels}, as {name} is {'image' if from_image else 'text'} to video",
        hint=hint,
    )


def published_like(patch_size_t: object, *, first_frame: bool) -> str:
    """Name the published 5B model of a temporal patch, from text or from a first frame to video."""
    return PUBLISHED[(1 if patch_size_t is None else 2) + 2 * first_frame]


def no_such_model(model: str, embedded: Sequence[str]) -> ModelError:
    """Return the error for what is no folder, no embedded model and no Hub id."""
    known = {name.rpartition("/")[2].lower(): name for name in (*PUBLISHED, *cached_models())}
    known |= {name: name for name in embedded}
    near = difflib.get_close_matches(model.rpartition("/")[2].lower(), known, n=1)
    return ModelError(
        f"Model {model!r} not found: not a local folder, not a built-in model "
        f"({', '.join(embedded)}) and not a Hub id (owner/name)",
        hint=f"did you mean --model {known[near[0]]}?" if near else EXAMPLE,
    )


def single_file(model: str, file: Path) -> ModelError:
    """Return the error for a model that is a file."""
    pipeline = next((up for up in (file.parent, file.parent.parent) if _is_pipeline(up)), None)
    hint = _replaced("") if pipeline is None else _by_folder(pipeline)
    if pipeline is None and file.suffix == ".safetensors":
        hint = f"a transformer: --model {PUBLISHED[1]} --transformer {shlex.quote(model)}"
        hint += f"; a LoRA: --lora {shlex.quote(model)}"
    return ModelError(
        f"the model {model} is a file; expected a folder in diffusers format, or a Hub id",
        hint=hint,
    )


def check_is_pipeline(name: str, folder: Path) -> None:
    """Refuse a folder without `model_index.json` by what it holds instead, if that is known."""
    if _is_pipeline(folder):
        return
    found = _found_in(folder)
    if found is not None:
        raise ModelError(f"{name} {found[0]}; expected a pipeline's folder", hint=found[1])


def _found_in(folder: Path) -> tuple[str, str] | None:
    """Say what a folder holds, as the end of a sentence, and what mends it."""
    if snapshots := [path.parent for path in folder.glob("snapshots/*/model_index.json")]:
        main = folder / "refs" / "main"
        newest = max(snapshots, key=lambda path: path.stat().st_mtime_ns)
        commit = main.read_text().strip() if main.is_file() else newest.name
        chosen = folder / "snapshots" / commit
        chosen = chosen if chosen in snapshots else newest
        return "is a folder of the Hub's cache, above its snapshots", _by_folder(chosen)
    if any(folder.glob("models--*")):
        named = [path.name.removeprefix("models--") for path in sorted(folder.glob("models--*"))]
        likely = next((one for one in named if "cogvideox" in one.lower()), named[0])
        return "is the Hub's cache", f"--model {shlex.quote(likely.replace('--', '/', 1))}"
    if _is_pipeline(folder.parent) and folder.name in FOLDERS:
        return "is one part of a pipeline", _by_folder(folder.parent)
    loras = sorted(folder.glob("*lora*.safetensors"))
    if loras or (folder / "adapter_config.json").is_file():
        file = loras[0] if loras else folder / "adapter_model.safetensors"
        return "is a LoRA adapter", f"--model ID --lora {shlex.quote(str(file))}"
    if any(folder.glob("*.gguf")):
        return "holds GGUF weights, which are not read", EXAMPLE
    if any(any(folder.glob(f"{above}mp_rank_*.pt")) for above in ("", "*/", "*/*/")):
        mend = "convert them with that repository's tools/convert_weight_sat2hf.py"
        return "holds weights in the format of the CogVideo repository (SAT)", mend
    if "Transformer3D" in str(_config(folder / "config.json").get("_class_name")):
        return "is a transformer alone, without T5 and VAE", _replaced("; it becomes transformer/")
    if next(folder.iterdir(), None) is None:
        return "is an empty folder", EXAMPLE
    return None


def check_without_adapter(name: str, folder: Path) -> None:
    """Refuse an adapter beside T5, which transformers would add to it, and no digest would tell.

    Raises:
        ModelError: There is one.
    """
    adapter = folder / "text_encoder" / "adapter_config.json"
    if adapter.exists():
        raise ModelError(
            f"{name} has an adapter of its text encoder, text_encoder/{adapter.name}; expected T5 "
            "as it was published",
            hint="move the adapter's files out of the folder",
        )


def other_weights(folder: Path, stems: dict[str, str]) -> tuple[str, str] | None:
    """Find weights that a part has in a variant (fp16) or pickled (.bin) only.

    Args:
        folder: Of the pipeline.
        stems: Stem of the weight files by part.

    Returns:
        The first such file, by its place in the pipeline, and the command that mends all.
    """
    renamed: list[tuple[Path, Path]] = []
    pickled: list[Path] = []
    for part, stem in stems.items():
        single = folder / part / f"{stem}.safetensors"
        index = single.with_name(f"{single.name}.index.json")
        if single.is_file() or index.is_file():
            continue
        variants = [*single.parent.glob(f"{stem}.*.safetensors")]
        variants = [path for path in variants if "-of-" not in path.name]
        indices = [*single.parent.glob(f"{stem}.safetensors.index.*.json")]
        renamed += [(path, index) for path in indices[:1]] or [(p, single) for p in variants[:1]]
        pickled += sorted(single.parent.glob("*.bin"))
    if not renamed and not pickled:
        return None
    moves = [shlex.join(["mv", str(old), str(new)]) for old, new in renamed]
    first = renamed[0][0] if renamed else pickled[0]
    return first.relative_to(folder).as_posix(), " && ".join(moves) or _convert(folder)


def _convert(folder: Path) -> str:
    """Write the command that saves a pipeline of pickled weights in safetensors."""
    config = _config(folder / "transformer" / "config.json")
    # As the weights were published: CogVideoX-2B, which has no rotary positions, in fp16.
    dtype = "bfloat16" if config.get("use_rotary_positional_embeddings") else "float16"
    old, new = str(folder), f"{folder}-safetensors"
    program = (
        f"import torch, diffusers; diffusers.DiffusionPipeline.from_pretrained({old!r}, "
        f"use_safetensors=False, dtype=torch.{dtype}).save_pretrained({new!r})"
    )
    command = shlex.join(["python", "-c", program])
    return f"if you trust whoever made them: {command}, then {_by_folder(Path(new))}"


def _is_pipeline(folder: Path) -> bool:
    return (folder / "model_index.json").is_file()


def _by_folder(folder: Path) -> str:
    return f"--model {shlex.quote(str(folder))}"


def _replaced(also: str) -> str:
    return f"`hf download {PUBLISHED[1]} --local-dir DIR` brings a pipeline{also}, then --model DIR"


def _config(file: Path) -> Config:
    with suppress(OSError, ValueError):
        if file.stat().st_size < 1_000_000:
            return decode_config(file.read_bytes())
    return {}
