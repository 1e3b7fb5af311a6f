"""The videos that a row of a batch names, also by a pattern such as `clips/*.mp4`."""

from __future__ import annotations

from pathlib import Path

from cogedit.errors import StorageError, UsageError, VideoError
from cogedit.media.encoding import KNOWN_VIDEO_SUFFIXES
from cogedit.media.images import SUFFIXES
from cogedit.media.recipe_comment import find_comment
from cogedit.stages.run import Run
from cogedit.wording import count_of


def videos_of(given: Path, run: Run) -> list[Path]:
    """Return the videos that are meant; what cogedit wrote beside them is not among them.

    As in a shell, hidden files are named by a pattern that begins with a dot. A pattern of pictures
    names the frames of one video.

    Raises:
        UsageError: A pattern names nothing, or has wildcards before its last part.
    """
    if given.exists() or not _has_wildcards(str(given)):
        return [given]
    if not _has_wildcards(given.name):
        raise UsageError(
            f"no video is called {given}", hint="only the last part of a path may be a pattern"
        )
    found = sorted(
        path
        for path in given.parent.glob(given.name)
        if path.is_file() and (given.name.startswith(".") or not path.name.startswith("."))
    )
    pictures = [path for path in found if path.suffix.lower() in SUFFIXES]
    if given.suffix.lower() in SUFFIXES or (pictures and pictures == found):
        return [given]
    if given.suffix in ("", ".*"):  # which names artifacts and lists as well
        found = [path for path in found if path.suffix.lower() in KNOWN_VIDEO_SUFFIXES]
    videos = [path for path in found if not _is_written(path)]
    if not videos:
        raise UsageError(f"no video is called {given}", hint="check the folder and the pattern")
    if len(videos) < len(found):
        others = count_of(len(found) - len(videos), "file")
        run.notify(f"{given} leaves out {others} that cogedit wrote")
    return videos


def _has_wildcards(text: str) -> bool:
    return any(mark in text for mark in "*?")


def _is_written(path: Path) -> bool:
    """Whether a video is an edit, its source or its mask, and no clip to be edited."""
    try:
        comment = find_comment(path) or ""
    except (VideoError, StorageError):  # told when its turn comes
        return False
    return comment.startswith(('{"cogedit":', "cogedit:"))
