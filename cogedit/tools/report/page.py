"""A report as one HTML page that needs nothing else: no network, no library, no other file.

Text goes through `html.escape` at the one place where it meets markup. The page's own policy allows
no address but data and files beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

from cogedit.tools.report.contents import (
    NONE,
    Clip,
    Contents,
    Edit,
    Facts,
    Figure,
    Inversion,
    Movie,
    Plot,
)
from cogedit.tools.report.plots import draw

GENERATOR = "cogedit report"
"""What the page's `generator` begins with: only such a page is replaced unasked."""

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data:; media-src 'self' data: file:"
)
_SMALL = 240
"""Clips that are narrower show their pixels when they are enlarged."""


def render(contents: Contents) -> str:
    """Write a report as HTML."""
    folder = Path(__file__).parent
    style = (folder / "page.css").read_text(encoding="utf-8")
    script = (folder / "page.js").read_text(encoding="utf-8")
    count = sum(len(clip.edits) for clip in contents.clips)
    said = "1 edit" if count == 1 else f"{count} edits"
    notice = f'<p class="quiet">{escape(contents.notice)}</p>' if contents.notice else ""
    button = '<p class="bar"><button class="all" type="button">Play all</button></p>'
    body = "".join(_clip(clip, len(contents.clips) > 1) for clip in contents.clips)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="{GENERATOR} {escape(contents.version)}">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<link rel="icon" href="data:,">
<title>{escape(contents.title)}</title>
<style>
{style}</style>
</head>
<body>
<header>
<p class="quiet small" style="margin:0">Video edits, cogedit {escape(contents.version)}</p>
<h1 dir="auto">{escape(contents.title)}</h1>
<p class="quiet">{said}. Drag the line in a picture, or move it with the arrow keys, to compare
source and edit.</p>
{notice}
{button if count > 1 else ""}
</header>
<main>
{body}
{_left_out(contents.left_out)}
</main>
<footer><p>{_LEGEND}</p></footer>
<script>
{script}</script>
</body>
</html>
"""


_LEGEND = (
    "PSNR and SSIM say how far an edit is from its source after the VAE, over all pixels: an edit "
    "that changes much has low values and is not worse for it. Outside the mask they are those of "
    "what the model made there, before the source is put back. Edges that an export aligns with "
    "the source's (--align-edges) are not aligned here, in pictures and figures. "
    "Warp error: mean difference, in levels of 0 to 255, of each frame and the next one moved back "
    "along the source's own motion; near the source's value is steady, far above it flickers."
)


def _clip(clip: Clip, titled: bool) -> str:
    title = f'<h2 dir="auto">{escape(clip.title)}</h2>' if titled else ""
    parts = ["<section>", title, _overview(clip.edits), _source(clip)]
    parts += [_edit(edit, clip) for edit in clip.edits]
    return "".join([*parts, "</section>"])


def _overview(edits: tuple[Edit, ...]) -> str:
    """One row per edit, to see all figures together."""
    if len(edits) < 2:
        return ""
    known = {f.name for edit in edits for f in edit.figures if f.value != NONE}
    columns = [f.name for f in edits[0].figures if f.name in known]
    names = "".join(f'<th scope="col" class="n">{escape(name)}</th>' for name in columns)
    rows = []
    for edit in edits:
        cells = "".join(
            f'<td class="n">{escape(f.value)}</td>' for f in edit.figures if f.name in known
        )
        distinct = ", ".join(f"{name} {text}" for name, text in edit.distinct)
        if distinct:
            distinct = f'<div class="quiet small" dir="auto">{escape(distinct)}</div>'
        rows.append(
            f'<tr><td class="thumb{_pixels(edit.movie)}"><img src="{escape(edit.movie.poster)}" '
            f'alt="" width="64" height="44"></td><th scope="row"><a dir="auto" '
            f'href="#edit-{escape(edit.key)}">{escape(edit.prompt)}</a>{distinct}</th>{cells}</tr>'
        )
    return (
        '<h2>Overview</h2><div class="scroll" tabindex="0" role="region" '
        'aria-label="Figures of all edits"><table><thead><tr><td></td>'
        f'<th scope="col">Prompt</th>{names}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _source(clip: Clip) -> str:
    if clip.source is None:
        shown = (
            '<p class="quiet">Neither the frames nor the latents of the clip are in the workspace: '
            "the edits are shown alone, without figures against it.</p>"
        )
    else:
        name = f"{clip.source_label} of {clip.title}"
        shown = _player(clip.source, None, name=name, tags=(clip.source_label, ""))
    inversions = "".join(_inversion(one, clip) for one in clip.inversions)
    return (
        '<article class="card"><h3>Source</h3><div class="columns" style="margin-top:16px">'
        f"<div>{shown}</div><div>{_figures(clip.figures)}{_facts(clip.facts)}</div></div>"
        f"{inversions}</article>"
    )


def _inversion(inversion: Inversion, clip: Clip) -> str:
    name = f" {inversion.key}" if len(clip.inversions) > 1 else ""
    return (
        f"<h4>Inversion{escape(name)}</h4>"
        f'<div class="pair"><div>{_figures(inversion.figures)}</div>'
        f"<div>{_facts(inversion.facts)}</div></div>"
        f"{_plots(inversion.plots, inversion.key)}"
    )


def _edit(edit: Edit, clip: Clip) -> str:
    mask = ""
    if edit.mask is not None:
        mask = (
            f'<div class="mask{_pixels(edit.movie)}"><img src="{escape(edit.mask)}" '
            'alt="The mask of the middle frame, white where the edit may change the source">'
            '<span class="quiet small">The edit is held to the source outside the white part of '
            "this mask, and the source after the VAE is shown there.</span></div>"
        )
    changed = _facts(edit.changed) or '<p class="small">All settings are the defaults.</p>'
    player = _player(
        edit.movie, clip.source, name=f"edit: {edit.prompt}", tags=(clip.source_label, "edit")
    )
    return (
        f'<article class="card" id="edit-{escape(edit.key)}">'
        f'<h3 dir="auto">{escape(edit.prompt)}</h3>'
        '<div class="columns" style="margin-top:16px">'
        f"<div>{player}{mask}</div>"
        f"<div>{_figures(edit.figures)}<h4>Settings that were changed</h4>{changed}"
        f"<details><summary>All settings</summary>{_facts(edit.settings)}</details>"
        f"<details><summary>Origin</summary>{_facts(edit.facts)}</details></div></div>"
        f"{_plots(edit.plots, edit.key)}</article>"
    )


def _player(edited: Movie, source: Movie | None, *, name: str, tags: tuple[str, str]) -> str:
    """A video with its controls; with a source, both on each other and a line between them."""
    shape = f"{edited.width} / {edited.height}"
    # Not higher than most of the window, whatever the shape.
    style = f"max-width:calc(72vh * {edited.width} / {edited.height})"
    videos = [_video(edited, "edited", name)]
    marks = f'<span class="tag left">{escape(tags[0])}</span>' if not tags[1] else ""
    if source is not None:
        videos.insert(0, _video(source, "source", f"{tags[0]}, to compare"))
        marks = (
            '<input class="compare" type="range" min="0" max="100" value="50" '
            f'aria-label="Line between {escape(tags[0])} and edit">'
            '<span class="divider"></span>'
            f'<span class="tag left">{escape(tags[0])}</span>'
            f'<span class="tag right">{escape(tags[1])}</span>'
        )
    alone = " alone" if source is None else ""
    return (
        f'<figure class="player{_pixels(edited)}" style="{style}" data-fps="{edited.fps:.6f}" '
        f'data-frames="{edited.num_frames}">'
        f'<div class="stage{alone}" style="aspect-ratio:{shape}">{"".join(videos)}{marks}</div>'
        '<div class="controls"><button class="play" type="button">Play</button>'
        '<button class="step back" type="button" aria-label="Previous frame">&#8249;</button>'
        '<button class="step on" type="button" aria-label="Next frame">&#8250;</button>'
        f'<input class="seek" type="range" min="0" max="{edited.num_frames - 1}" value="0" '
        'aria-label="Frame"><span class="frame number"></span></div></figure>'
    )


def _video(movie: Movie, role: str, name: str) -> str:
    return (
        f'<video class="{role}" src="{escape(movie.src)}" poster="{escape(movie.poster)}" '
        f'width="{movie.width}" height="{movie.height}" aria-label="{escape(name)}" '
        'muted playsinline controls loop preload="auto"></video>'
    )


def _figures(figures: Iterable[Figure]) -> str:
    rows = "".join(
        f"<div><dt>{escape(f.name)}</dt><dd>{escape(f.value)}</dd>"
        f'<dd class="note">{escape(f.note)}</dd></div>'
        for f in figures
        if f.value != NONE
    )
    return f'<dl class="figures">{rows}</dl>' if rows else ""


def _facts(facts: Facts) -> str:
    rows = "".join(
        f'<dt>{escape(name)}</dt><dd dir="auto">{escape(value)}</dd>' for name, value in facts
    )
    return f'<dl class="facts">{rows}</dl>' if rows else ""


def _plots(plots: tuple[Plot, ...], key: str) -> str:
    drawn = []
    for index, plot in enumerate(plots):
        legend = "".join(
            f'<li class="{"reference" if curve.is_reference else f"c{number}"}">'
            f"{escape(curve.label)}</li>"
            for number, curve in enumerate(plot.curves)
        )
        drawn.append(
            f'<div class="plot"><h5>{escape(plot.title)}</h5>{draw(plot, f"{key}-{index}")}'
            f'<ul class="legend">{legend}</ul></div>'
        )
    return f'<div class="pair" style="margin-top:24px">{"".join(drawn)}</div>' if drawn else ""


def _left_out(left_out: Facts) -> str:
    if not left_out:
        return ""
    return f'<section><h2>Not shown</h2><div class="card">{_facts(left_out)}</div></section>'


def _pixels(movie: Movie) -> str:
    return " pixels" if movie.width < _SMALL else ""
