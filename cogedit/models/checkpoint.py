"""Find a model's files by name, check that they are complete, and fingerprint them. No torch.

A checkpoint is identified by a digest over its configuration and a sample of every weight tensor: a
renamed copy of a model is the same, and a fine-tuned one is another.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
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
from cogedit.models.folder import FolderState, digest_of, state_of, state_of_file
from cogedit.models.geometry import Geometry
from cogedit.models.hub import (
    cached_folder,
    download,
    fetch_command,
    is_offline,
    other_owner,
    snapshot_id,
    why_not_cached,
)
from cogedit.models.mistaken import (
    EXAMPLE,
    IMAGE_TO_VIDEO,
    check_channels,
    check_is_pipeline,
    check_kind,
    check_without_adapter,
    no_such_model,
    other_weights,
    single_file,
)
from cogedit.models.scheduler import check_scheduler
from cogedit.models.single_file import Files, PartFile, read_part, transformer_config
from cogedit.models.weights import StoredTensor, WeightFile
from cogedit.types import DType

_SHAPES = Path(__file__).resolve().parents[1] / "shapes"
EMBEDDED = {"shapes": _SHAPES / "weights", "shapes-i2v": _SHAPES / "weights"}
"""Models that come with the package, by name."""

_OWN_FILES: dict[str, Files] = {
    "shapes-i2v": (
        ("transformer", _SHAPES / "first_frame" / "diffusion_pytorch_model.safetensors"),
    )
}
"""Image-to-video models that come with the package: what they have in place of the folder's."""

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
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class NotCachedError(ModelError):
    """A Hub model that is not in the local cache as a whole, where no download was allowed."""


class _Incomplete(ModelError):
    """A file is missing that a download would bring."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete CogVideoX pipeline on disk, from text or from a first frame to video.

    Attributes:
        id: Hub id, name of an embedded model, or name of the local folder.
        folder: Where its files are.
        revision: The resolved commit of a Hub model; None for a folder.
        digest: sha256 over all configuration files and a sample of the weights, in hex.
        geometry: Sizes that it imposes on a clip.
        num_parameters: Weights of each component, by the names of `COMPONENTS`.
        stored_dtype: Number format of most of the transformer's weights.
        transformer_tensors: Where each tensor of the transformer is, by its name in the module.
        files: Parts that are files of their own, outside of the folder.
    """

    id: str
    folder: Path
    revision: str | None
    digest: str
    geometry: Geometry
    scheduler_config: Config
    transformer_config: Config
    text_encoder_config: Config
    vae_config: Config
    num_parameters: Mapping[str, int]
    stored_dtype: DType
    transformer_tensors: Mapping[str, StoredTensor]
    files: Mapping[str, PartFile] = field(default_factory=dict)

    @property
    def takes_first_frame(self) -> bool:
        """Whether its transformer takes a clip's first frame beside its latents."""
        return self.geometry.takes_first_frame


def find_checkpoint(
    model: str, revision: str | None = None, *, files: Files = (), download: bool = True
) -> Checkpoint:
    """Find a model by the name of an embedded one, a local folder or a Hub id, and check it.

    A Hub model that is complete in the local cache is used without asking the network; otherwise
    it is downloaded.

    Args:
        model: "shapes", "shapes-i2v", a folder in diffusers format, or "owner/name".
        revision: Branch, tag or commit of a Hub model; None is the main branch.
        files: Parts that are taken from a file of their own; the pipeline's may be missing.
        download: Whether a Hub model that is not in the cache may be downloaded.

    Raises:
        NotCachedError: A Hub model is not cached and may not be downloaded.
        ModelError: Missing, gated, incomplete, or not a CogVideoX pipeline that edits videos.
        StorageError: Its files cannot be read, or a download cannot be written.
    """
    held = _held.get()
    if held is None:
        return _find(model, revision, files, download=download)
    key = model, revision, files, download
    if key not in held:
        try:
            held[key] = _find(model, revision, files, download=download)
        except ModelError as error:
            held[key] = error
    found = held[key]
    if isinstance(found, ModelError):
        raise found
    # What was missing before is here once it is downloaded.
    held[model, revision, files, False] = found
    return found


_Held = dict[tuple[str, str | None, Files, bool], Checkpoint | ModelError]
_held: ContextVar[_Held | None] = ContextVar("held", default=None)
"""Of each thread its own: what one looked up may be gone when another looks."""


@contextmanager
def looked_up_once() -> Iterator[None]:
    """Look each model up once in the body: thousands of edits would each look five times."""
    before = _held.set({})
    try:
        yield
    finally:
        _held.reset(before)


def _find(model: str, revision: str | None, files: Files, *, download: bool) -> Checkpoint:
    if model in EMBEDDED:
        own = dict(_OWN_FILES.get(model, ())) | dict(files)
        return _checked(
            model, EMBEDDED[model], None, tuple(own.items()), mend="install cogedit again"
        )
    folder = Path(model)
    with suppress(RuntimeError):  # of a user that this machine does not have
        folder = folder.expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ModelError(
                f"{model} is a local folder and has no revisions; found --revision {revision}",
                hint="leave --revision out, or give a Hub id",
            )
        return _checked_folder(folder, files)
    if folder.exists():
        raise single_file(model, folder)
    if not _HUB_ID.fullmatch(model):
        raise no_such_model(model, [*EMBEDDED])
    return _find_on_hub(model, revision, files, may_download=download)


def _checked_folder(folder: Path, files: Files) -> Checkpoint:
    """Check a local folder; one of the Hub's cache has a Hub id and a commit."""
    resolved = folder.resolve()
    named = snapshot_id(folder) if resolved.parent.name == "snapshots" else None
    if named is not None:
        return _checked(named[0], folder, named[1], files, mend=fetch_command(*named))
    check_is_pipeline(resolved.name, folder)
    return _checked(resolved.name, folder, None, files, mend="copy the folder again")


def _find_on_hub(
    model: str, revision: str | None, files: Files, *, may_download: bool
) -> Checkpoint:
    from huggingface_hub.errors import HFValidationError

    fetch = fetch_command(model, revision)
    try:
        cached = cached_folder(model, revision)
    except HFValidationError as error:
        raise no_such_model(model, [*EMBEDDED]) from error
    incomplete: ModelError | None = None
    if cached is not None:
        try:
            return _checked(model, cached, cached.name, files, mend=fetch)
        except _Incomplete as error:
            incomplete = error
    other = other_owner(model)
    folder = None if other is None else cached_folder(other, revision)
    if other is not None and folder is not None:
        with suppress(_Incomplete):
            return _checked(other, folder, folder.name, files, mend=fetch_command(other, revision))
    if incomplete is not None and (is_offline() or not may_download):
        raise NotCachedError(incomplete.message, hint=incomplete.hint) from incomplete
    if is_offline() or not may_download:
        message, hint = why_not_cached(model, revision)
        raise NotCachedError(message, hint=hint)
    fetched = download(model, revision, without=[part for part, _ in files])
    return _checked(model, fetched, fetched.name, files, mend=fetch)


_known: dict[tuple[str, Path, str | None, Files, FolderState], Checkpoint] = {}
"""Pipelines that this process has checked, by the state of their files."""


def _checked(
    name: str, folder: Path, revision: str | None, files: Files, *, mend: str
) -> Checkpoint:
    """Check and describe a pipeline folder; once per process, as long as no file of it changes."""
    if not folder.is_dir():
        raise ModelError(f"the folder of model {name} is missing", hint=mend)
    state = (*state_of(folder, name, mend=mend), *(state_of_file(path) for _, path in files))
    key = name, folder, revision, files, state
    if key not in _known:
        _known[key] = _check(name, folder, revision, files, mend=mend)
    return _known[key]


def _check(name: str, folder: Path, revision: str | None, files: Files, *, mend: str) -> Checkpoint:
    """Check a pipeline folder file by file and describe it."""
    parts: dict[str, PartFile] = {part: read_part(path, part) for part, path in files}
    try:
        index = _read_config(folder, "model_index.json", name, mend)
        if name in _OWN_FILES and folder == EMBEDDED[name]:
            # The folder is the text-to-video model's, which says so.
            index = {**index, "_class_name": IMAGE_TO_VIDEO}
        check_kind(name, index)
        check_without_adapter(name, folder)
        weights: dict[str, list[WeightFile]] = {}
        for component, (class_name, stem) in COMPONENTS.items():
            entry = index.get(component)
            found = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
            if found != class_name:
                raise ModelError(
                    f"{name} has {component} = {plain(found)}; expected {class_name}",
                    hint=EXAMPLE,
                )
            if component in parts:
                weights[component] = [parts[component].weights]
            else:
                weights[component] = _weight_files(folder, component, stem, name, mend)
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
        if "transformer" in parts:
            configs["transformer"] = transformer_config(
                parts["transformer"],
                configs["transformer"],
                text_width=configs["text_encoder"].get("d_model"),
            )
        own = {part: (configs[part], file.weights) for part, file in parts.items()}
        in_folder = [file for part, some in weights.items() if part not in parts for file in some]
        digest = digest_of(folder, in_folder, own)
    except OSError as error:
        raise StorageError(f"the files of model {name} cannot be read: {error}") from error
    try:
        geometry = Geometry.of(configs["vae"], configs["transformer"])
        check_config(TextEncoderConfig, configs["text_encoder"], "text_encoder/config.json")
        its_scheduler = check_config(SchedulerConfig, scheduler, _SCHEDULER)
        check_config(TokenizerConfig, tokenizer, _TOKENIZER)
    except ModelError as error:
        raise ModelError(f"{name} is damaged: {error.message}", hint=mend) from error
    check_scheduler(name, its_scheduler)
    check_channels(
        name,
        index,
        configs["transformer"],
        latent_channels=geometry.latent_channels,
        file=parts["transformer"].path if "transformer" in parts else None,
    )
    return Checkpoint(
        name,
        folder,
        revision,
        digest,
        geometry,
        scheduler,
        transformer_config=configs["transformer"],
        text_encoder_config=configs["text_encoder"],
        vae_config=configs["vae"],
        num_parameters={
            component: sum(file.num_parameters for file in files)
            for component, files in weights.items()
        },
        stored_dtype=_stored_dtype(weights["transformer"]),
        transformer_tensors=_tensors(weights["transformer"], parts.get("transformer")),
        files=parts,
    )


def _stored_dtype(files: Sequence[WeightFile]) -> DType:
    """Return the number format of most weights; 8 bits count as bf16, in which they compute."""
    counts: Counter[str] = Counter()
    for file in files:
        counts.update(file.dtypes)
    [(most, _)] = counts.most_common(1) or [("F32", 0)]
    return "fp16" if most == "F16" else "fp32" if most in ("F32", "F64") else "bf16"


def _tensors(files: Sequence[WeightFile], own: PartFile | None) -> dict[str, StoredTensor]:
    found = {
        name: StoredTensor(f.path, name, shape) for f in files for name, shape in f.shapes.items()
    }
    return found if own is None else {name: found[in_file] for name, in_file in own.names.items()}


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
        others = other_weights(folder, {part: stem for part, (_, stem) in COMPONENTS.items()})
        if others is None:
            raise _Incomplete(f"{name} is incomplete: {single} is missing", hint=mend)
        file, again = others
        raise _Incomplete(f"{name} has no {single} (it has {file}, which is not read)", hint=again)
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
