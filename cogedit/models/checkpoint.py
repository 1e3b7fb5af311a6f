"""Which model is meant, where its files are, and whether they are all there. No torch in here.

A checkpoint is known by its id, its resolved revision and a digest over its configuration and a
sample of its weights, so that a fine-tuned copy of a model is another model.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from cogedit.errors import ModelError, StorageError
from cogedit.models.geometry import Config, Geometry

EMBEDDED = {"shapes": Path(__file__).resolve().parents[1] / "shapes" / "weights"}
"""Models that come with the package, by name."""

COMPONENTS = {
    "transformer": ("CogVideoXTransformer3DModel", "diffusion_pytorch_model"),
    "vae": ("AutoencoderKLCogVideoX", "diffusion_pytorch_model"),
    "text_encoder": ("T5EncoderModel", "model"),
}
"""Component: its class in model_index.json, and the stem of its weight files."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Checkpoint:
    """A complete CogVideoX text-to-video pipeline on disk.

    Attributes:
        id: Hub id, name of an embedded model, or name of the local folder.
        folder: Where its files are.
        revision: The resolved commit of a hub model; None for a folder.
        digest: sha256 over all configuration files and a sample of the weights, in hex.
        geometry: Sizes that it imposes on a clip.
        scheduler_config: Its scheduler's configuration.
    """

    id: str
    folder: Path
    revision: str | None
    digest: str
    geometry: Geometry
    scheduler_config: Config


def find_checkpoint(
    model: str, revision: str | None = None, *, download: bool = True
) -> Checkpoint:
    """Find a model by the name of an embedded one, a local folder or a hub id, and check it.

    A hub model that is complete in the local cache is used without asking the network; otherwise
    it is downloaded.

    Args:
        model: "shapes", a folder in diffusers format, or "owner/name".
        revision: Branch, tag or commit of a hub model; None is the main branch.
        download: Whether a hub model that is not here may be fetched.

    Raises:
        ModelError: Missing, gated, incomplete, or not a CogVideoX text-to-video pipeline.
    """
    if model in EMBEDDED:
        return _checked(model, EMBEDDED[model], None)
    folder = Path(model).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ModelError(
                f"{model} is a local folder and has no revisions; found --revision {revision}.",
                hint="leave --revision out, or name a model of the hub",
            )
        return _checked(folder.resolve().name, folder, None)
    if not _HUB_ID.fullmatch(model):
        known = ", ".join(EMBEDDED)
        raise ModelError(
            f"There is no model {model!r}: it is no folder, no embedded model ({known}) and not of "
            "the form owner/name.",
            hint="for example --model zai-org/CogVideoX-5b",
        )
    return _find_on_hub(model, revision, download=download)


def cuda_present() -> bool:
    """Tell whether this machine has a CUDA device, asking the driver and not torch (2 s)."""
    import ctypes

    library = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return False
    count = ctypes.c_int(0)
    return (
        driver.cuInit(0) == 0
        and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
        and count.value > 0
    )


def _find_on_hub(model: str, revision: str | None, *, download: bool) -> Checkpoint:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = "" if revision is None else f" --revision {revision}"
    fetch = f"`hf download {model}{at}` on a machine with a connection"
    wanted = ["*.json", "*.safetensors", "*.model"]
    try:
        cached = Path(snapshot_download(model, revision=revision, local_files_only=True))
        return _checked(model, cached, cached.name if _COMMIT.fullmatch(cached.name) else None)
    except (LocalEntryNotFoundError, ModelError) as error:
        # Not in the cache, or only in part: the download below completes it.
        if not download:
            raise ModelError(f"{model} is not here yet.", hint=fetch) from error
    try:
        fetched = Path(snapshot_download(model, revision=revision, allow_patterns=wanted))
    except GatedRepoError as error:
        raise ModelError(
            f"{model} is gated and this account has no access.",
            hint="accept its terms on its page, then `hf auth login`",
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{model} has no revision {revision!r}.", hint=fetch) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"There is no model {model} on the hub, or it is private.", hint="check its name"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{model} is not complete in the local cache and the hub cannot be reached.",
            hint=fetch,
        ) from error
    return _checked(model, fetched, fetched.name)


def _checked(name: str, folder: Path, revision: str | None) -> Checkpoint:
    """Check a pipeline folder file by file and describe it."""
    mend = "copy the folder again" if revision is None else f"`hf download {name}`"
    if not folder.is_dir():
        raise ModelError(f"The folder of model {name} is missing.", hint="install cogedit again")
    try:
        index = _read_config(folder / "model_index.json", name, mend)
        if index.get("_class_name") != "CogVideoXPipeline":
            raise ModelError(
                f"{name} is a {index.get('_class_name')}; expected a CogVideoXPipeline "
                "(text to video).",
                hint="for example --model zai-org/CogVideoX-5b",
            )
        weights: list[Path] = []
        for component, (class_name, stem) in COMPONENTS.items():
            entry = index.get(component)
            found = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
            if found != class_name:
                raise ModelError(f"{name} has {component} = {found}; expected {class_name}.")
            weights += _weight_files(folder / component, stem, name, mend)
        if not any((folder / "tokenizer").glob("*.*")):
            raise ModelError(f"{name} is incomplete: tokenizer/ has no file.", hint=mend)
        configs = {
            part: _read_config(folder / part / "config.json", name, mend) for part in COMPONENTS
        }
        scheduler = _read_config(folder / "scheduler" / "scheduler_config.json", name, mend)
        digest = _digest(folder, weights)
    except OSError as error:
        raise StorageError(f"The files of model {name} cannot be read: {error}.") from error
    geometry = Geometry.of(configs["vae"], configs["transformer"])
    return Checkpoint(name, folder, revision, digest, geometry, scheduler)


def _read_config(path: Path, name: str, mend: str) -> Config:
    where = f"{path.parent.name}/{path.name}" if path.name == "config.json" else path.name
    if not path.is_file():
        raise ModelError(f"{name} is incomplete: {where} is missing.", hint=mend)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{name} is damaged: {where} is not JSON ({error}).", hint=mend) from error
    if not isinstance(config, dict):
        raise ModelError(f"{name} is damaged: {where} is not a JSON object.", hint=mend)
    return config


def _weight_files(folder: Path, stem: str, name: str, mend: str) -> list[Path]:
    """List the safetensors files of a component, each present and as long as its header says."""
    single = folder / f"{stem}.safetensors"
    index = folder / f"{stem}.safetensors.index.json"
    if single.is_file():
        files = [single]
    elif index.is_file():
        weight_map = _read_config(index, name, mend).get("weight_map")
        shards = weight_map.values() if isinstance(weight_map, dict) else []
        files = [folder / str(shard) for shard in sorted(set(shards))]
    else:
        pickled = any(folder.glob("*.bin"))
        also = " (pickled .bin weights are not read)" if pickled else ""
        raise ModelError(
            f"{name} is incomplete: {folder.name}/ has no {single.name}{also}.", hint=mend
        )
    for file in files:
        label = f"{folder.name}/{file.name}"
        if not file.is_file():
            raise ModelError(f"{name} is incomplete: {label} is missing.", hint=mend)
        expected, found = _safetensors_size(file), file.stat().st_size
        if expected != found:
            raise ModelError(
                f"{name} is incomplete: {label} has {found} bytes; expected {expected}.", hint=mend
            )
    return files


def _safetensors_size(path: Path) -> int:
    """Return how long a safetensors file must be by its own header; -1 if that is unreadable."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= 100_000_000:
            return -1
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for k, entry in header.items() if k != "__metadata__"]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            return -1
    return 8 + length + max(ends, default=0)


def _digest(folder: Path, weights: list[Path], *, samples: int = 32, size: int = 4096) -> str:
    """Hash every configuration file whole and the weights at evenly spaced places.

    Hashing 20 GB of weights takes half a minute at every command; a fine-tune changes nearly every
    byte, so a sample tells two models apart.
    """
    digest = hashlib.sha256()
    texts = sorted(p for p in folder.glob("*/*") if p.suffix in {".json", ".model"})
    for path in texts:
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    for path in weights:
        length = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()} {length}\n".encode())
        with path.open("rb") as file:
            for i in range(samples):
                file.seek(max(0, length - size) * i // (samples - 1))
                digest.update(file.read(size))
    return digest.hexdigest()


