"""Image files as a video: a folder of pictures or a pattern of their names, read by Pillow."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import math
import re
import shlex
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from cogedit.disk import FileState
from cogedit.errors import StorageError, VideoError
from cogedit.media.encoding import KNOWN_VIDEO_SUFFIXES
from cogedit.media.ffmpeg import MAX_FRAME_PIXELS
from cogedit.media.files import file_digest, file_state
from cogedit.places import find_elsewhere

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")
SUFFIXES = {".jpg": ".jpg", ".jpeg": ".jpg", ".tif": ".tif", ".tiff": ".tif"}
SUFFIXES |= {suffix: suffix for suffix in (".png", ".webp", ".bmp", ".ppm", ".pgm", ".pbm")}
VIDEO_OR_PICTURE = {*KNOWN_VIDEO_SUFFIXES, *SUFFIXES}
_SHOWN = "PNG, JPEG, WebP, BMP, TIFF or PPM"
_NAME_ONE = "name one video, or the pictures of one; `cogedit batch` takes many videos"
_OF_SYSTEMS = {"thumbs.db", "desktop.ini", "__macosx"}

_NUMBER = re.compile(r"%(?:0(\d))?d")
_DIGITS = re.compile(r"([0-9]+)")
_MANY = 8  # more names or numbers than this make no sentence


@dataclass(frozen=True)
class Images:
    """Pictures of one size in the order in which they are shown."""

    folder: Path
    pattern: str | None  # of their names; None for all pictures of the folder
    files: tuple[Path, ...]
    width: int  # in pixels, upright
    height: int
    has_alpha: bool  # some pixel is transparent
    fps: Fraction | None  # that cogedit recorded when it wrote them; None where it did not
    notes: tuple[str, ...]  # about the folder, one sentence each

    @property
    def sha256(self) -> str:
        """Digest of the names, their order and the contents, in hex."""
        return _digest(self.files, tuple(map(file_state, self.files)))


def are_images(path: Path) -> bool:
    """Whether a path is a folder, or a pattern such as `frames/%04d.png` and `frames/*.png`."""
    return path.is_dir() or (_is_pattern(path.name) and not path.exists())


def folder_of(path: Path) -> Path:
    """The folder that images lie in, with a name where it has one."""
    folder = path if path.is_dir() else path.parent
    return folder if folder.name and folder.name != ".." else folder.resolve()


def digest_of(path: Path) -> str:
    """The sha256 of a video file in hex, or of the names and contents of pictures.

    Raises `StorageError`, and of pictures `VideoError`.
    """
    return find_images(path).sha256 if are_images(path) else file_digest(path)


def check_unchanged(path: Path, sha256: str) -> None:
    """Raise `VideoError` where what was read has a digest no longer; others as `digest_of`.

    It is computed again only where the state of a file is another one than before.
    """
    if digest_of(path) != sha256:
        raise VideoError(
            f"{path} changed while it was read",
            hint="run the same command again, once nothing writes to it",
        )


def find_images(path: Path) -> Images:
    """List pictures and look at the header of each.

    A pattern has a number, `%d` or with leading zeros `%04d`, or the wildcards of a shell. Numbers
    in names are sorted by their value.

    Raises:
        VideoError: There is no picture, one cannot be read, they differ in size, or a folder holds
            pictures of several kinds, or one picture among videos.
        StorageError: The folder or a picture may not be read.
    """
    folder, pattern = (path, None) if path.is_dir() else (path.parent, path.name)
    names, ignored = _names(folder, pattern)
    if not names:
        what = "holds no picture" if pattern is None else f"holds no picture {pattern}"
        raise VideoError(f"{folder} {what}: expected {_SHOWN}", hint=_NAME_ONE)
    if pattern is None:
        videos = [name for name in ignored if Path(name).suffix.lower() in KNOWN_VIDEO_SUFFIXES]
        if len(names) == 1 and videos:  # a folder of clips, and a picture that lies there, too
            raise VideoError(
                f"{folder} holds videos and one picture: {_list([*videos, *names])}; expected the "
                "pictures of one video",
                hint=_NAME_ONE,
            )
        _check_series(folder, names)
    names.sort(key=_natural)
    notes = [f"not read in {folder}: {_list(ignored)}"] if ignored else []
    notes += _gaps(folder, names)
    files = tuple(folder / name for name in names)
    size, has_alpha, fps = _look(files, tuple(map(file_state, files)))
    return Images(folder_of(path), pattern, files, *size, has_alpha, fps, tuple(notes))


def _is_pattern(name: str) -> bool:
    has_wildcard = any(mark in name for mark in "*?[")
    suffix = Path(name).suffix.lower()
    return (has_wildcard or bool(_NUMBER.search(name))) and suffix in (*SUFFIXES, "", ".*")


def _names(folder: Path, pattern: str | None) -> tuple[list[str], list[str]]:
    """Names of the pictures, and of what else lies in a folder that is taken whole."""
    try:
        found = sorted(folder.iterdir())
    except FileNotFoundError as error:
        # The address of a video with a question mark is written as a pattern, too.
        if elsewhere := find_elsewhere(str(folder / (pattern or ""))):
            raise VideoError(elsewhere.message, hint=elsewhere.hint) from error
        raise VideoError(f"there is no folder {folder}", hint="check the path") from error
    except OSError as error:
        raise StorageError(f"cannot read {folder}: {error.strerror or error}") from error
    shown = [
        entry
        for entry in found
        if not entry.name.startswith(".") and entry.name.lower() not in _OF_SYSTEMS
    ]
    if pattern is not None:
        matches = _regex(pattern)
        shown = [entry for entry in shown if matches.fullmatch(entry.name)]
    pictures = [
        entry.name for entry in shown if entry.suffix.lower() in SUFFIXES and entry.is_file()
    ]
    return pictures, [entry.name for entry in shown if entry.name not in pictures]


def _regex(pattern: str) -> re.Pattern[str]:
    number = _NUMBER.search(pattern)
    if number is None:
        return re.compile(fnmatch.translate(pattern))
    before, after = (part.replace("%%", "%") for part in _NUMBER.split(pattern, maxsplit=1)[::2])
    digits = rf"[0-9]{{{number[1] or 1},}}"
    return re.compile(f"{re.escape(before)}{digits}{re.escape(after)}")


def _check_series(folder: Path, names: Sequence[str]) -> None:
    """Refuse a folder in which pictures of several kinds would be mixed into one video."""
    kinds = Counter(_kind(name) for name in names)
    if len(kinds) > 1 and any("#" in kind for kind in kinds):
        found = [f"{count} of {kind}" for kind, count in kinds.most_common()]
        most = kinds.most_common(1)[0][0].replace("#", "*")
        quoted = shlex.quote(str(folder / most))
        raise VideoError(
            f"{folder} holds pictures of several kinds, where # is a number: {_list(found)}",
            hint=f"name those that are meant by a pattern, in quotes: {quoted}",
        )


def _kind(name: str) -> str:
    """A name without its numbers: equal for the pictures of one series."""
    path = Path(name)
    return _DIGITS.sub("#", path.stem) + SUFFIXES[path.suffix.lower()]


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key under which "frame2" comes before "frame10"."""
    parts = _DIGITS.split(name)
    return [(int(part), "") if n % 2 else (0, part) for n, part in enumerate(parts)], name


def _gaps(folder: Path, names: Sequence[str]) -> list[str]:
    """Say which numbers are missing, where one number counts the pictures of one series."""
    if len({_kind(name) for name in names}) > 1 or len(names) < 2:
        return []
    columns = [*zip(*(_DIGITS.findall(Path(name).stem) for name in names), strict=True)]
    counting = [[*map(int, column)] for column in columns if len({*map(int, column)}) > 1]
    if len(counting) != 1:
        return []
    numbers = counting[0]
    step = math.gcd(*(after - before for before, after in pairwise(numbers)))
    if step == 0 or len(numbers) != len({*numbers}):
        return [f"several pictures of {folder} have the same number"]
    num_missing = (numbers[-1] - numbers[0]) // step + 1 - len(numbers)
    if num_missing == 0:
        return []
    gaps = [
        f"{before + step}" if after == before + 2 * step else f"{before + step} to {after - step}"
        for before, after in pairwise(numbers)
        if after > before + step
    ]
    return [f"numbers are missing in {folder}, and those around them follow at once: {_list(gaps)}"]


def _list(words: Sequence[str]) -> str:
    more = f" and {len(words) - _MANY} more" if len(words) > _MANY else ""
    return ", ".join(words[:_MANY]) + more


@lru_cache(maxsize=16)
def _look(
    files: tuple[Path, ...], states: tuple[FileState, ...]
) -> tuple[tuple[int, int], bool, Fraction | None]:
    """Find size, transparency and recorded rate, once per process while the files are unchanged."""
    size, has_alpha, fps = (0, 0), False, None
    for file in files:
        with open_image(file) as image:
            found = _upright_size(image)
            if file == files[0]:
                size, fps = found, _recorded_rate(image.info.get("comment"))
            has_alpha = has_alpha or is_transparent(image)
        if found != size:
            raise VideoError(
                f"{file} is {found[0]}x{found[1]}, and {files[0].name} is {size[0]}x{size[1]}: "
                "expected pictures of one size",
                hint="scale them to one size first",
            )
    return size, has_alpha, fps


def _upright_size(image: Image.Image) -> tuple[int, int]:
    is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return image.size[::-1] if is_turned else image.size


def _recorded_rate(comment: object) -> Fraction | None:
    """The rate at which cogedit wrote pictures; None for pictures of others."""
    try:
        recorded = Fraction(json.loads(str(comment))["export"]["fps"])
    except (ValueError, KeyError, TypeError, ZeroDivisionError, RecursionError):
        return None
    return recorded if 0 < recorded <= 1000 else None


@contextmanager
def open_image(file: Path) -> Iterator[Image.Image]:
    """Open a picture; what goes wrong with it, also later, names the file.

    Raises:
        VideoError: It is no picture, is cut short, or has too many pixels.
        StorageError: It may not be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > MAX_FRAME_PIXELS:
                    raise Image.DecompressionBombError
                yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise VideoError(
            f"{file} has more than 8192x4320 pixels, which is the bound", hint="scale it down first"
        ) from error
    except UnidentifiedImageError as error:
        raise VideoError(
            f"{file} is not a picture that can be read: expected {_SHOWN}",
            hint="convert it to PNG, or name the others by a pattern",
        ) from error
    except PermissionError as error:
        raise StorageError(f"cannot read {file}: {error.strerror or error}") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise VideoError(
            f"{file} cannot be read to its end: {error}", hint="check that it is complete"
        ) from error


def read_image(file: Path, background: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Read a picture upright, uint8 RGB [height, width, 3]; errors are those of `open_image`.

    16 bits are rounded to 8. What is transparent shows `background`.
    """
    with open_image(file) as image:
        ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image, background)


def is_transparent(image: Image.Image) -> bool:
    """Whether some pixel of an open picture is transparent."""
    if not image.has_transparency_data:
        return False
    least = image.convert("RGBA").getchannel("A").getextrema()[0]
    return isinstance(least, int | float) and least < 255


def to_rgb(image: Image.Image, background: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The pixels of an open picture, uint8 RGB [height, width, 3], laid on `background`."""
    # PGM has at most 16 bits, and comes in 32.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        levels = (np.asarray(image).astype(np.uint32) + 128) // 257
        return np.repeat(levels.astype(np.uint8)[..., None], 3, axis=-1)
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are numbers of 32 bits ({image.mode}), expected 8 or 16")
    if not image.has_transparency_data:
        return np.array(image.convert("RGB"))
    pixels = np.asarray(image.convert("RGBA")).astype(np.uint32)
    alpha = pixels[..., 3:]
    mixed = pixels[..., :3] * alpha + np.array(background, np.uint32) * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


@lru_cache(maxsize=16)
def _digest(files: tuple[Path, ...], states: tuple[FileState, ...]) -> str:
    digest = hashlib.sha256()
    for file in files:
        name = file.name.encode(errors="surrogateescape")
        digest.update(name + b"\0" + file_digest(file).encode() + b"\n")
    return digest.hexdigest()
