"""Places that a user names: folders for several files, and what no folder of this machine has.

The latter are URLs, and paths of Windows.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

Output = str | Path
"""A file, or a folder for several; text that ends in a slash is a folder, which need not exist."""

# One slash or more: a `Path` takes "https://a" for the folders "https:" and "a", and turns slashes
# into backslashes on Windows, where "clips:" may be a folder's name as well.
_URL = re.compile(
    r"(?P<scheme>(?:https?|ftps?|s3|gs|rtsp|file)(?=:[/\\])|[a-z][a-z0-9+.-]+(?=:/)):[/\\]+(?P<rest>.+)",
    re.IGNORECASE | re.DOTALL,
)
_SITE = re.compile(
    r"(?:(?:www|m)\.)?(?:youtube\.com|youtu\.be|vimeo\.com|tiktok\.com)[/\\].+"
    r"|www\.[^/\\]+[/\\].+",
    re.IGNORECASE | re.DOTALL,
)
_STREAMED = re.compile(r"\b(youtube|youtu\.be|vimeo|tiktok)\b", re.IGNORECASE)
_DRIVE = re.compile(r"([A-Za-z]):[\\/]*(.*)", re.DOTALL)
_COMMANDS = {"s3": "aws s3 cp {} .", "gs": "gcloud storage cp {} ."}


def is_folder_name(output: Output) -> bool:
    """Whether a name is written as that of a folder, with a slash at its end."""
    return isinstance(output, str) and output.endswith(("/", os.sep))


@dataclass(frozen=True)
class Elsewhere:
    """A place that is not here: a sentence about it, and what to do."""

    message: str
    hint: str


def find_elsewhere(place: str) -> Elsewhere | None:
    """Recognise a URL, or on another system than Windows one of its paths; None for other places.

    Whether a file of this name exists all the same is for the caller to ask first.
    """
    url = _URL.fullmatch(place)
    if url is not None:
        return _url(url["scheme"].lower(), url["rest"].replace("\\", "/"))
    if _SITE.fullmatch(place):
        return _url("https", place.replace("\\", "/"))
    drive = _DRIVE.fullmatch(place)
    if os.name == "nt" or (drive is None and "\\" not in place):
        return None
    hint = f"write it with /: {place.replace(chr(92), '/')}"
    if drive is not None:
        rest = drive[2].replace("\\", "/")
        hint = f"name it as this system does, such as /mnt/{drive[1].lower()}/{rest} under WSL"
    return Elsewhere(f"{place} is a path of Windows, which this system does not have", hint)


def _url(scheme: str, rest: str) -> Elsewhere:
    if scheme == "file":
        path = rest if rest.startswith("/") else f"/{rest}"
        return Elsewhere(f"file://{path} is a URL, expected a file", f"name the file: {path}")
    url = f"{scheme}://{rest}"
    command = _COMMANDS.get(scheme, "curl -o clip.mp4 {}")
    if _STREAMED.search(rest.partition("/")[0]):
        command = "yt-dlp -o clip.mp4 {}"
    return Elsewhere(
        f"{url} is a URL, expected a file on this machine",
        f"download it first, for example: {command.format(shlex.quote(url))}",
    )
