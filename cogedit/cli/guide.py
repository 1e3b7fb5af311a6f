"""`cogedit guide`: the pages of `cogedit/guide`, on the terminal."""

from __future__ import annotations

import difflib
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from cogedit.cli.arguments import argument
from cogedit.cli.screen import Screen, handle_errors
from cogedit.errors import UsageError

_FOLDER = Path(__file__).parents[1] / "guide"
_MAX_WIDTH = 100
_LINK = re.compile(r"!?\[([^\]]+)\]\((?!https?:)(?:([\w-]+)\.md)?[^)]*\)")
"""A relative link or image: its text, and the page of the guide that it leads to."""


def guide_pages() -> dict[str, str]:
    """Return the text of each page by topic."""
    return {page.stem: page.read_text(encoding="utf-8") for page in sorted(_FOLDER.glob("*.md"))}


def _complete(incomplete: str) -> list[str]:
    return [topic for topic in guide_pages() if topic.startswith(incomplete)]


def guide(
    topic: Annotated[
        str | None,
        argument("TOPIC", "A page. Default: list the topics.", complete=_complete, parser=str),
    ] = None,
) -> None:
    """Read the guide: list its topics, or print one.

    Example: cogedit guide masks
    """
    with handle_errors(Screen()):
        pages = guide_pages()
        if topic is None:
            _list_topics(pages)
            return
        if topic not in pages:
            near = difflib.get_close_matches(topic.lower(), pages)
            hint = f"did you mean {' or '.join(near)}?" if near else "`cogedit guide` lists them"
            raise UsageError(f"the guide has no topic '{topic}'", hint=hint)
        _print_page(pages[topic])


def _list_topics(pages: dict[str, str]) -> None:
    """List each topic with the first sentence under its title."""
    from cogedit.cli.tables import show_rows

    paragraphs = {topic: " ".join(text.split("\n\n")[1].split()) for topic, text in pages.items()}
    show_rows([(topic, text.partition(". ")[0].rstrip(".")) for topic, text in paragraphs.items()])


def _print_page(text: str) -> None:
    """Print a page: rendered on a terminal, as its Markdown elsewhere."""
    if not sys.stdout.isatty():
        typer.echo(text, nl=False)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    text = _LINK.sub(
        lambda link: link[1] + (f" (`cogedit guide {link[2]}`)" if link[2] else ""), text
    )
    console = Console()
    console.print(Markdown(text), width=min(console.width, _MAX_WIDTH))
