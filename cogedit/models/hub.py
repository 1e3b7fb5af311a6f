"""Models of the Hugging Face Hub: what this machine's cache holds of them, and their download."""

from __future__ import annotations

import errno
import re
import shlex
from collections.abc import Collection
from pathlib import Path

from cogedit.errors import ModelError, StorageError
from cogedit.models.folder import FOLDERS

PUBLISHED = (
    "zai-org/CogVideoX-2b",
    "zai-org/CogVideoX-5b",
    "zai-org/CogVideoX1.5-5B",
    "zai-org/CogVideoX-5b-I2V",
    "zai-org/CogVideoX1.5-5B-I2V",
)
"""The models of CogVideoX's authors: from text to video, then from a first frame."""

_OWNERS = ("zai-org", "THUDM")
"""One owner, under the name of today and the former one; the Hub leads from one to the other."""

_SUFFIXES = (".json", ".safetensors", ".model")
_SNAPSHOT = re.compile(r"models--([\w.-]+)/snapshots/([0-9a-f]{40})")
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


def hub_cache() -> Path:
    """Return the folder of this machine where Hub models are kept."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def is_offline() -> bool:
    """Return whether the user has told the Hub's library to use no network."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def fetch_command(model: str, revision: str | None) -> str:
    """Write the command that downloads a model."""
    online = "HF_HUB_OFFLINE=0 " if is_offline() else ""
    words = ["hf", "download", model, *([] if revision is None else ["--revision", revision])]
    return online + shlex.join(words)


def other_owner(model: str) -> str | None:
    """Return the other id of a model whose owner has changed its name; None of any other."""
    owner, _, name = model.partition("/")
    others = [other for other in _OWNERS if other != owner]
    return f"{others[0]}/{name}" if owner in _OWNERS else None


def cached_folder(model: str, revision: str | None) -> Path | None:
    """Return the folder of a model in the cache, which may lack files; None without its index.

    `snapshot_download(local_files_only=True)` is not asked: it calls a snapshot incomplete when it
    lacks any file of the repository, such as the sample videos, which are not fetched here.

    Raises:
        HFValidationError: The model is no Hub id.
    """
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(model, "model_index.json", revision=revision)
    return Path(index).parent if isinstance(index, str) else None


def cached_commits(model: str) -> list[str]:
    """Return the commits of a model that the cache holds, whatever it lacks of them; newest first.

    A copied or cleaned cache may hold them without the names of branches.
    """
    snapshots = hub_cache() / f"models--{model.replace('/', '--')}" / "snapshots"
    found = [path for path in snapshots.glob("*") if (path / "model_index.json").exists()]
    found.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return [path.name for path in found]


def cached_models() -> list[str]:
    """Return the ids of the pipelines in the cache."""
    names = (path.parents[2].name for path in hub_cache().glob("*/snapshots/*/model_index.json"))
    return sorted({name.removeprefix("models--").replace("--", "/", 1) for name in names})


def snapshot_id(folder: Path) -> tuple[str, str] | None:
    """Return id and commit of a folder that is a model's snapshot in the cache; None otherwise."""
    folder, cache = folder.resolve(), hub_cache().resolve()
    if not folder.is_relative_to(cache):
        return None
    found = _SNAPSHOT.fullmatch(folder.relative_to(cache).as_posix())
    return None if found is None else (found[1].replace("--", "/", 1), found[2])


def why_not_cached(model: str, revision: str | None) -> tuple[str, str]:
    """Say why a revision is not found in the cache, and which command mends it."""
    commits, wanted = cached_commits(model), revision or ""
    longer = [commit for commit in commits if commit.startswith(wanted)]
    if len(longer) == 1 and revision is not None:
        return (
            f"{model} has no revision {revision!r} in the local cache; a commit is named by its "
            "40 digits",
            f"--revision {longer[0]}",
        )
    if commits and revision is None:
        return (
            f"{model} is in the local cache, which does not say which commit is its main branch",
            f"--revision {commits[0]}",
        )
    at = "" if revision is None else f" at revision {revision!r}"
    offline = ", and HF_HUB_OFFLINE is set" if is_offline() else ""
    return f"{model} is not in the local cache{at}{offline}", fetch_command(model, revision)


def download(model: str, revision: str | None, *, without: Collection[str] = ()) -> Path:
    """Download what is missing of a model and return its folder in the cache.

    Of the parts in `without`, no weights are fetched.

    Raises:
        ModelError: There is no such model or revision, it is gated, or the Hub cannot be reached.
        StorageError: The cache cannot be written.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    wanted = [f"{folder}/*{suffix}" for folder in FOLDERS for suffix in _SUFFIXES]
    try:
        folder = snapshot_download(
            model,
            revision=revision,
            allow_patterns=["model_index.json", *wanted],
            ignore_patterns=[f"{part}/*.safetensors" for part in without],
        )
    except GatedRepoError as error:
        raise ModelError(
            f"{model} is gated and this account has no access",
            hint="accept its terms on its page, then `hf auth login`",
        ) from error
    except RevisionNotFoundError as error:
        longer = [commit for commit in cached_commits(model) if commit.startswith(revision or "")]
        raise ModelError(
            f"{model} has no revision {revision!r}",
            hint=f"--revision {longer[0]}"
            if len(longer) == 1
            else "name a branch, a tag or a commit by its 40 digits",
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"the Hub has no model {model}, or it is private",
            hint="check its name, or `hf auth login`",
        ) from error
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise StorageError(f"{model} cannot be downloaded: {error}") from error
        raise ModelError(
            f"{model} is not complete in the local cache and the Hub cannot be reached",
            hint=f"{fetch_command(model, revision)}, on a machine with a connection",
        ) from error
    return Path(folder)
