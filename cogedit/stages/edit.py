"""reconstruct: trajectory + prompt -> edit; and edit: video + prompts -> edited videos."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from cogedit.artifacts import (
    EditRecord,
    TrajectoryRecord,
    Workspace,
    content_key,
    frames_record,
    read_artifact,
    read_record,
    sniff_kind,
)
from cogedit.config import Settings, check_settings
from cogedit.errors import UsageError
from cogedit.models.checkpoint import Checkpoint
from cogedit.stages.checkpoints import check_same_model, checkpoint_for, dtype_for, model_record
from cogedit.stages.export import SUFFIXES, Decoder, export
from cogedit.stages.invert import invert
from cogedit.stages.load import load
from cogedit.stages.mask import (
    check_fits,
    found_pixels,
    latents_of,
    pixels_of,
    show_mask,
    take_mask,
)
from cogedit.stages.run import (
    Exported,
    Run,
    Written,
    check_output,
    check_text,
    find_or_make,
    workspace_for,
)
from cogedit.types import ReconstructSettings

if TYPE_CHECKING:
    from diffusers import CogVideoXTransformer3DModel
    from torch import Tensor

    from cogedit.diffusion.trajectory import Trajectory
    from cogedit.media.masks import GivenMask


def reconstruct(
    source: str | Path,
    prompts: str | Sequence[str],
    settings: Settings,
    *,
    mask: str | Path | None = None,
    output: Path | None = None,
    save_trajectory: bool = False,
    run: Run | None = None,
) -> list[Written[EditRecord]]:
    """Denoise a trajectory under new prompts, with attention looking at the source.

    Args:
        source: A trajectory, or anything before it; what is missing is run first.
        prompts: One edit is made of each.
        settings: `reconstruct` and `model`; the tables of the earlier stages where they are run.
        mask: Where the edit may change the source: a picture, a video, or a box in pixels of the
            source, "x0,y0,x1,y1" or "x0,y0,x1,y1@FIRST:LAST"; None is everywhere. It belongs to
            one video, as a prompt does, and is no setting.
        output: The artifact, for a single prompt; None is its place in the workspace.
        save_trajectory: Keep every step of the edit in the artifact.
        run: How to run; None is silent.

    Returns:
        One artifact per prompt, in their order.

    Raises:
        UsageError: No prompt, one `output` for several, a setting out of range, or a mask that is
            empty or outside the source.
        VideoError: The mask cannot be read, or does not fit the source.
        ArtifactError: The source is of a later kind, of another model, or damaged.
        ModelError: The model is missing or incomplete.
        DeviceMemoryError: The device is full.
        NumericalError: NaN or Inf appeared.
    """
    source, run = Path(source), run or Run()
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if output is not None and len(prompts) > 1:
        raise UsageError(
            f"-o names one file, and there are {len(prompts)} prompts",
            hint="leave -o out: each edit gets a name of its own in the workspace",
        )
    check_output(output, source=source)
    workspace = workspace_for(source, settings)
    given = take_mask(mask, settings)
    checkpoint = checkpoint_for(settings)
    _check(prompts, settings, checkpoint)
    if given is not None:
        source = _fit_mask(given, source, settings, run=run)
    if sniff_kind(source) in (None, "frames", "latents"):
        source = invert(source, settings, run=run.earlier).path
    trajectory = read_record(source, "trajectory")
    check_same_model(str(source), trajectory.model, checkpoint)
    records = [
        EditRecord(
            trajectory=trajectory,
            model=model_record(checkpoint, settings),
            settings=_canonical(settings.reconstruct_with(prompt), trajectory),
            has_trajectory=save_trajectory,
            mask=given.source if given is not None else None,
        )
        for prompt in prompts
    ]
    editor = Editor(source, trajectory, checkpoint, prompts, mask=given, settings=settings, run=run)
    edits = []
    for record in records:
        make = partial(editor.edit, record)
        edits.append(find_or_make(record, make, output=output, workspace=workspace, run=run))
        if record.settings.auto_mask and not edits[-1].reused:
            _show_found_mask(edits[-1], run)
    return edits


def edit(
    video: str | Path,
    prompts: str | Sequence[str],
    settings: Settings,
    *,
    mask: str | Path | None = None,
    output: Path | None = None,
    run: Run | None = None,
) -> list[Exported]:
    """Edit a video from start to finish: load, encode, invert, reconstruct, export.

    Args:
        video: The video, or any artifact before an edit.
        prompts: One edited video is made of each.
        settings: All tables.
        mask: As for `reconstruct`.
        output: The folder for the videos, made if need be, or the video itself for a single
            prompt; None is the workspace.
        run: How to run; None is silent.

    Returns:
        The videos, in the order of the prompts, named after source, prompt and content key.

    Raises:
        CogeditError: As the stages.
    """
    video, run = Path(video), run or Run()
    prompts = [prompts] if isinstance(prompts, str) else prompts
    wanted = settings.export.composite
    if wanted in ("decode", "source") and mask is None and not settings.reconstruct.auto_mask:
        raise UsageError(f"--composite {wanted} needs a mask", hint="give --mask or --auto-mask")
    is_file = output is not None and output.suffix.lower() in SUFFIXES and not output.is_dir()
    if is_file and len(prompts) > 1:
        raise UsageError(
            f"-o names one video, and there are {len(prompts)} prompts", hint="name a folder"
        )
    check_output(output if is_file else None, source=video)
    folder = workspace_for(video, settings).root if output is None else output
    written = reconstruct(video, prompts, settings, mask=mask, run=run)
    if not is_file:
        Workspace(folder).create()
    decoder = Decoder(settings)
    return [
        export(
            one.path,
            settings,
            output=output if is_file else folder / _video_name(one.record),
            run=run,
            decoder=decoder,
        )
        for one in written
    ]


def _fit_mask(mask: GivenMask, source: Path, settings: Settings, *, run: Run) -> Path:
    """Refuse a mask that does not fit before the inversion, which takes long: the clip tells.

    Returns:
        What the run goes on from: `source`, or its frames where that is a video.
    """
    if sniff_kind(source) is None:
        source = load(source, settings, run=run.earlier).path
    check_fits(mask, frames_record(read_record(source)))
    return source


def _canonical(asked: ReconstructSettings, trajectory: TrajectoryRecord) -> ReconstructSettings:
    """Give one edit one content key: all levels of the inversion is what None stands for."""
    if asked.num_inference_steps == trajectory.settings.num_inference_steps:
        return replace(asked, num_inference_steps=None)
    return asked


def _check(prompts: Sequence[str], settings: Settings, checkpoint: Checkpoint) -> None:
    """Refuse what cannot work before any stage runs.

    Raises:
        UsageError: No prompt, one that is no text, or a setting out of range.
    """
    if not prompts:
        raise UsageError("reconstruct needs a prompt", hint='--prompt "what the edit shows"')
    asked = settings.reconstruct
    check_settings(asked)
    for text in (*prompts, asked.negative_prompt):
        check_text(text)
    last, num_layers = asked.injection_layers[1], checkpoint.geometry.num_layers
    if asked.injection_layers[0] >= num_layers or (last is not None and last > num_layers):
        raise UsageError(
            f"injection_layers is {asked.injection_layers[0]}:{last or 'END'}; "
            f"{checkpoint.id} has layers 0:{num_layers}",
            hint=f"choose a window within 0:{num_layers}",
        )


def _video_name(record: EditRecord) -> str:
    """Name a video after source, prompt and content key."""
    source = Path(record.trajectory.latents.frames.source.name).stem
    return f"{source}-{_slug(record.settings.prompt)}-{content_key(record)[:8]}.mp4"


class Editor:
    """Makes edits of one trajectory; loads prompts and model when the first is asked for.

    Args:
        path: The trajectory artifact.
        record: Its record.
        checkpoint: The model.
        prompts: All prompts that may be asked for, embedded in one go.
        mask: The mask of all of them; None where there is none, or it is to be found.
        settings: Device of the run and the `reconstruct` table.
        run: How to run.
    """

    def __init__(
        self,
        path: Path,
        record: TrajectoryRecord,
        checkpoint: Checkpoint,
        prompts: Sequence[str],
        *,
        mask: GivenMask | None,
        settings: Settings,
        run: Run,
    ) -> None:
        self._path = path
        self._record = record
        self._checkpoint = checkpoint
        self._prompts = prompts
        self._mask = mask
        self._settings = settings
        self._run = run

    def edit(self, record: EditRecord) -> Mapping[str, Tensor]:
        """Denoise as the record says.

        Returns:
            `latents` [B, F', C, H', W'] float32, `trajectory` [N, B, F', C, H', W'] if the record
            asks for it, `mask` [F, H, W] uint8 and `source_latents` if it has a mask.
        """
        import torch

        from cogedit.models.device import memory_guard
        from cogedit.models.loading import alphas_cumprod
        from cogedit.models.sampling import edit_latents

        asked = record.settings
        pixels = self._pixels(record)
        steps = (asked.num_inference_steps or len(self._reference.timesteps)) - asked.start_step
        transformer, embeds = self._transformer, self._embeds  # loaded before the clock starts
        with (
            memory_guard("editing"),
            self._run.progress(f"editing: {asked.prompt}", steps) as on_step,
        ):
            samples = edit_latents(
                transformer,
                self._reference,
                [asked],
                inversion_prompts=[self._record.settings.prompt],
                alphas_cumprod=alphas_cumprod(self._checkpoint),
                embeds=embeds,
                mask=None if pixels is None else self._latents(pixels, record),
                on_step=on_step,
            )
        tensors = {"latents": samples[-1].cpu()}
        if record.has_trajectory:
            tensors["trajectory"] = torch.stack(samples).cpu()
        if pixels is not None:
            tensors |= {"mask": pixels, "source_latents": self._reference.latents}
        return tensors

    def _pixels(self, record: EditRecord) -> Tensor | None:
        """The mask of an edit as pixels of the clip, [F, H, W] uint8; None where it has none."""
        if self._given is not None or not record.settings.auto_mask:
            return self._given
        from cogedit.models.auto_mask import find_masks
        from cogedit.models.device import memory_guard

        with memory_guard("looking for the mask"):
            [found] = find_masks(
                self._transformer,
                self._reference,
                [record.settings],
                inversion_prompts=[self._record.settings.prompt],
                embeds=self._embeds,
            )
        geometry = self._checkpoint.geometry
        return found_pixels(found, geometry, num_pad_frames=self._record.num_pad_frames)

    def _latents(self, pixels: Tensor, record: EditRecord) -> Tensor:
        geometry, pad = self._checkpoint.geometry, self._record.num_pad_frames
        return latents_of(pixels, record, geometry, num_pad_frames=pad)

    @cached_property
    def _given(self) -> Tensor | None:
        return None if self._mask is None else pixels_of(self._mask, frames_record(self._record))

    @cached_property
    def _reference(self) -> Trajectory:
        from cogedit.diffusion.trajectory import Trajectory

        tensors = read_artifact(self._path, "trajectory").tensors
        timesteps = tuple(int(t) for t in tensors["timesteps"])
        return Trajectory(tensors["trajectory"], tensors["latents"], timesteps)

    @cached_property
    def _embeds(self) -> Mapping[str, Tensor]:
        from cogedit.models.device import DTYPES, memory_guard, resolve_device
        from cogedit.stages.text import embed_texts

        negative = self._settings.reconstruct.negative_prompt
        with memory_guard("embedding the prompts"):
            return embed_texts(
                [*self._prompts, negative, self._record.settings.prompt],
                self._checkpoint,
                resolve_device(self._settings.device),
                dtype=DTYPES[dtype_for(self._settings)],
                run=self._run,
            )

    @cached_property
    def _transformer(self) -> CogVideoXTransformer3DModel:
        from cogedit.models.device import DTYPES, memory_guard, resolve_device
        from cogedit.models.loading import load_transformer

        _ = self._embeds  # T5 is done and freed before the transformer needs the memory.
        with memory_guard("loading the transformer"):
            return load_transformer(
                self._checkpoint,
                device=resolve_device(self._settings.device),
                dtype=DTYPES[dtype_for(self._settings)],
            )


def _show_found_mask(written: Written[EditRecord], run: Run) -> None:
    """Write the mask that was found beside its edit, and say where and how large it is."""
    pixels = read_artifact(written.path, "edit").tensors["mask"]
    path = show_mask(pixels, written.path, fps=frames_record(written.record).fps)
    share = float(pixels.float().mean())
    run.say(f"wrote {path} (the mask that was found: {share:.0%} of the picture)")


def _slug(text: str, length: int = 40) -> str:
    """Make a file name of a prompt: lower-case words and hyphens."""
    words = re.sub(r"[^\w]+", "-", text.lower(), flags=re.ASCII).strip("-")
    return words[:length].strip("-") or "edit"
