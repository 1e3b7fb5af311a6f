"""Find a model's files by name, check that they are complete, and fingerprint them. No torch.

A checkpoint is identified by its id, its resolved revision and a digest over its configuration and
a sample of every weight tensor, so that a fine-tuned copy of a model is another model.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cogedit.errors import ModelError, StorageError, plain
from cogedit.models.configs import (
    Config,
    SchedulerConfig,
    TextEncoderConfig,
    TokenizerConfig,
    check_config,
    decode_config,
)
from cogedit.models.folder import FOLDERS, FolderState, digest_of, state_of
from cogedit.models.geometry import Geometry
from cogedit.models.weights import WeightFile

EMBEDDED = {"shapes": Path(__file__).resolve().parents[1] / "shapes" / "weights"}
"""Models that come with the package, by name."""

COMPONENTS = {
    "transformer": ("CogVideoXTransformer3DModel", "diffusion_pytorch_model"),
    "vae": ("AutoencoderKLCogVideoX", "diffusion_pytorch_model"),
    "text_encoder": ("T5EncoderModel", "model"),
}
"""Component: its class in model_index.json, and the stem of its weight files."""

VOCABULARIES = ("tokenizer.json", "spiece.model")
"""Files of tokenizer/, one of which must exist: without any, transformers makes up an empty
vocabulary and every word becomes the unknown token."""

_SCHEDULER = "scheduler/scheduler_config.json"
_TOKENIZER = "tokenizer/tokenizer_config.json"
_SUFFIXES = (".json", ".safetensors", ".model")
_EXAMPLE = "for example --model zai-org/CogVideoX-5b"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


class NotCachedError(ModelError):
    """A Hub model that is not in the local cache as a whole, where no download was allowed."""


class _Incomplete(ModelError):
    """A file is missing that a download would bring."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete CogVideoX text-to-video pipeline on disk.

    Attributes:
        id: Hub id, name of an embedded model, or name of the local folder.
        folder: Where its files are.
        revision: The resolved commit of a Hub model; None for a folder.
        digest: sha256 over all configuration files and a sample of the weights, in hex.
        geometry: Sizes that it imposes on a clip.
        num_parameters: Weights of each component, by the names of `COMPONENTS`.
    """

    id: str
    folder: Path
    revision: str | None
    digest: str
    geometry: Geometry
    scheduler_config: Config
    transformer_config: Config
    text_encoder_config: Config
    num_parameters: Mapping[str, int]


def find_checkpoint(
    model: str, revision: str | None = None, *, download: bool = True
) -> Checkpoint:
    """Find a model by the name of an embedded one, a local folder or a Hub id, and check it.

    A Hub model that is complete in the local cache is used without asking the network; otherwise
    it is downloaded.

    Args:
        model: "shapes", a folder in diffusers format, or "owner/name".
        revision: Branch, tag or commit of a Hub model; None is the main branch.
        download: Whether a Hub model that is not in the cache may be downloaded.

    Raises:
        NotCachedError: A Hub model is not cached and may not be downloaded.
        ModelError: Missing, gated, incomplete, or not a CogVideoX text-to-video pipeline.
        StorageError: Its files cannot be read, or a download cannot be written.
    """
    if _held is None:
        return _find(model, revision, download=download)
    key = model, revision, download
    if key not in _held:
        _held[key] = _find(model, revision, download=download)
    return _held[key]


_held: dict[tuple[str, str | None, bool], Checkpoint] | None = None


@contextmanager
def looked_up_once() -> Iterator[None]:
    """Look each model up once in the body: thousands of edits would each look five times."""
    global _held
    before, _held = _held, {}
    try:
        yield
    finally:
        _held = before


def _find(model: str, revision: str | None, *, download: bool) -> Checkpoint:
    if model in EMBEDDED:
        return _checked(model, EMBEDDED[model], None, mend="install cogedit again")
    folder = Path(model)
    with suppress(RuntimeError):  # of a user that this machine does not have
        folder = folder.expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ModelError(
                f"{model} is a local folder and has no revisions; found --revision {revision}",
                hint="leave --revision out, or give a Hub id",
            )
        return _checked(folder.resolve().name, folder, None, mend="copy the folder again")
    if folder.exists():
        raise ModelError(
            f"The model {model} is a file; expected a folder in diffusers format", hint=_EXAMPLE
        )
    if not _HUB_ID.fullmatch(model):
        raise _no_such_model(model)
    return _find_on_hub(model, revision, download=download)


def hub_cache() -> Path:
    """Return the folder of this machine where Hub models are kept."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def cuda_present() -> bool:
    """Return whether torch would find a CUDA device, without importing torch (2 s).

    The driver is asked, and the name of torch's build: a CPU build finds none in any case.
    """
    try:
        if version("torch").endswith("+cpu"):
            return False
    except PackageNotFoundError:
        return False

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


def _no_such_model(model: str) -> ModelError:
    known = ", ".join(EMBEDDED)
    return ModelError(
        f"Model {model!r} not found: not a local folder, not a built-in model ({known}) and not a "
        "Hub id (owner/name)",
        hint=_EXAMPLE,
    )


def _find_on_hub(model: str, revision: str | None, *, download: bool) -> Checkpoint:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    fetch = f"hf download {model}" + ("" if revision is None else f" --revision {revision}")
    # `snapshot_download(local_files_only=True)` is not asked: it calls a snapshot incomplete when
    # it lacks any file of the repository, such as the sample videos, which are not fetched here.
    try:
        index = try_to_load_from_cache(model, "model_index.json", revision=revision)
    except HFValidationError as error:
        raise _no_such_model(model) from error
    if isinstance(index, str):
        cached = Path(index).parent
        try:
            return _checked(model, cached, cached.name, mend=fetch)
        except _Incomplete as error:
            if not download:
                raise NotCachedError(error.message, hint=fetch) from error
    elif not download:
        raise NotCachedError(f"{model} is not in the local cache", hint=fetch)
    fetched = _download(model, revision, fetch=fetch)
    return _checked(model, fetched, fetched.name, mend=fetch)


def _download(model: str, revision: str | None, *, fetch: str) -> Path:
    """Download what is missing of a Hub model and return its folder in the cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    wanted = [f"{folder}/*{suffix}" for folder in FOLDERS for suffix in _SUFFIXES]
    try:
        folder = snapshot_download(
            model, revision=revision, allow_patterns=["model_index.json", *wanted]
        )
    except GatedRepoError as error:
        raise ModelError(
            f"{model} is gated and this account has no access",
            hint="accept its terms on its page, then `hf auth login`",
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(
            f"{model} has no revision {revision!r}", hint="name a branch, a tag or a commit"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"The Hub has no model {model}, or it is private",
            hint="check its name, or `hf auth login`",
        ) from error
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise StorageError(f"{model} cannot be downloaded: {error}") from error
        raise ModelError(
            f"{model} is not complete in the local cache and the Hub cannot be reached",
            hint=f"{fetch}, on a machine with a connection",
        ) from error
    return Path(folder)


_known: dict[tuple[str, Path, str | None, FolderState], Checkpoint] = {}
"""Pipelines that this process has checked, by the state of their files."""


def _checked(name: str, folder: Path, revision: str | None, *, mend: str) -> Checkpoint:
    """Check and describe a pipeline folder; once per process, as long as no file of it changes."""
    if not folder.is_dir():
        raise ModelError(f"The folder of model {name} is missing", hint=mend)
    key = name, folder, revision, state_of(folder, name, mend=mend)
    if key not in _known:
        _known[key] = _check(name, folder, revision, mend=mend)
    return _known[key]


def _check(name: str, folder: Path, revision: str | None, *, mend: str) -> Checkpoint:
    """Check a pipeline folder file by file and describe it."""
    try:
        index = _read_config(folder, "model_index.json", name, mend)
        if index.get("_class_name") != "CogVideoXPipeline":
            raise ModelError(
                f"{name} is a {plain(index.get('_class_name'))}; expected a CogVideoXPipeline "
                "(text to video)",
                hint=_EXAMPLE,
            )
        weights: list[WeightFile] = []
        num_parameters: dict[str, int] = {}
        for component, (class_name, stem) in COMPONENTS.items():
            entry = index.get(component)
            found = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
            if found != class_name:
                raise ModelError(
                    f"{name} has {component} = {plain(found)}; expected {class_name}",
                    hint=_EXAMPLE,
                )
            files = _weight_files(folder, component, stem, name, mend)
            num_parameters[component] = sum(file.num_parameters for file in files)
            weights += files
        vocabularies = [folder / "tokenizer" / file for file in VOCABULARIES]
        if not any(path.is_file() and path.stat().st_size for path in vocabularies):
            raise _Incomplete(
                f"{name} is incomplete: tokenizer/ has neither {' nor '.join(VOCABULARIES)}",
                hint=mend,
            )
        configs = {
            part: _read_config(folder, f"{part}/config.json", name, mend) for part in COMPONENTS
        }
        scheduler = _read_config(folder, _SCHEDULER, name, mend)
        tokenizer: Config = {}
        if (folder / _TOKENIZER).is_file():
            tokenizer = _read_config(folder, _TOKENIZER, name, mend)
        digest = digest_of(folder, weights)
    except OSError as error:
        raise StorageError(f"The files of model {name} cannot be read: {error}") from error
    try:
        geometry = Geometry.of(configs["vae"], configs["transformer"])
        check_config(TextEncoderConfig, configs["text_encoder"], "text_encoder/config.json")
        check_config(SchedulerConfig, scheduler, _SCHEDULER)
        check_config(TokenizerConfig, tokenizer, _TOKENIZER)
    except ModelError as error:
        raise ModelError(f"{name} is damaged: {error.message}", hint=mend) from error
    return Checkpoint(
        name,
        folder,
        revision,
        digest,
        geometry,
        scheduler,
        transformer_config=configs["transformer"],
        text_encoder_config=configs["text_encoder"],
        num_parameters=num_parameters,
    )


def _read_config(folder: Path, file: str, name: str, mend: str) -> Config:
    path = folder / file
    if not path.is_file():
        raise _Incomplete(f"{name} is incomplete: {file} is missing", hint=mend)
    try:
        return decode_config(path.read_bytes())
    except ValueError as error:
        raise ModelError(f"{name} is damaged: {file} {error}", hint=mend) from error


def _weight_files(
    folder: Path, component: str, stem: str, name: str, mend: str
) -> list[WeightFile]:
    """Read the headers of a component's safetensors files; all must exist and be complete."""
    single, index = f"{component}/{stem}.safetensors", f"{component}/{stem}.safetensors.index.json"
    if (folder / single).is_file() and (folder / index).is_file():
        raise ModelError(
            f"{name} has both {single} and {index}; expected one of them",
            hint="delete the one that does not belong to the model",
        )
    if (folder / index).is_file():
        files = [f"{component}/{shard}" for shard in _shards(folder, index, name, mend)]
    elif (folder / single).is_file():
        files = [single]
    else:
        pickled = any((folder / component).glob("*.bin"))
        also = " (pickled .bin weights are not read)" if pickled else ""
        raise _Incomplete(f"{name} is incomplete: {single} is missing{also}", hint=mend)
    weights: list[WeightFile] = []
    for file in files:
        if not (folder / file).is_file():
            raise _Incomplete(f"{name} is incomplete: {file} is missing", hint=mend)
        try:
            weights.append(WeightFile.read(folder / file))
        except ValueError as error:
            raise ModelError(f"{name} is damaged: {file} {error}", hint=mend) from error
    return weights


def _shards(folder: Path, index: str, name: str, mend: str) -> list[str]:
    """List the file names in the index of a component's weights."""
    weight_map = _read_config(folder, index, name, mend).get("weight_map")
    shards = set(map(str, weight_map.values())) if isinstance(weight_map, dict) else set()
    if not shards or any(Path(shard).name != shard for shard in shards):
        raise ModelError(f"{name} is damaged: {index} names no weight files", hint=mend)
    return sorted(shards)
