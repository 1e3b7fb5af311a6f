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


def reconstruct(
    source: str | Path,
    prompts: str | Sequence[str],
    settings: Settings,
    *,
    output: Path | None = None,
    save_trajectory: bool = False,
    run: Run | None = None,
) -> list[Written[EditRecord]]:
    """Denoise a trajectory under new prompts, with attention looking at the source.

    Args:
        source: A trajectory, or anything before it; what is missing is run first.
        prompts: One edit is made of each.
        settings: `reconstruct` and `model`; the tables of the earlier stages where they are run.
        output: The artifact, for a single prompt; None is its place in the workspace.
        save_trajectory: Keep every step of the edit in the artifact.
        run: How to run; None is silent.

    Returns:
        One artifact per prompt, in their order.

    Raises:
        UsageError: No prompt, one `output` for several, or a setting out of range.
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
    checkpoint = checkpoint_for(settings)
    _check(prompts, settings, checkpoint)
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
        )
        for prompt in prompts
    ]
    editor = Editor(source, trajectory, checkpoint, prompts, settings=settings, run=run)
    return [
        find_or_make(
            record, partial(editor.edit, record), output=output, workspace=workspace, run=run
        )
        for record in records
    ]


def edit(
    video: str | Path,
    prompts: str | Sequence[str],
    settings: Settings,
    *,
    output: Path | None = None,
    run: Run | None = None,
) -> list[Exported]:
    """Edit a video from start to finish: load, encode, invert, reconstruct, export.

    Args:
        video: The video, or any artifact before an edit.
        prompts: One edited video is made of each.
        settings: All tables.
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
    is_file = output is not None and output.suffix.lower() in SUFFIXES and not output.is_dir()
    if is_file and len(prompts) > 1:
        raise UsageError(
            f"-o names one video, and there are {len(prompts)} prompts", hint="name a folder"
        )
    check_output(output if is_file else None, source=video)
    folder = workspace_for(video, settings).root if output is None else output
    written = reconstruct(video, prompts, settings, run=run)
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
        settings: Settings,
        run: Run,
    ) -> None:
        self._path = path
        self._record = record
        self._checkpoint = checkpoint
        self._prompts = prompts
        self._settings = settings
        self._run = run

    def edit(self, record: EditRecord) -> Mapping[str, Tensor]:
        """Denoise as the record says.

        Returns:
            `latents` [B, F', C, H', W'] float32, and `trajectory` [N, B, F', C, H', W'] if the
            record asks for it.
        """
        import torch

        from cogedit.models.device import memory_guard
        from cogedit.models.loading import alphas_cumprod
        from cogedit.models.sampling import edit_latents

        asked = record.settings
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
                on_step=on_step,
            )
        tensors = {"latents": samples[-1].cpu()}
        if record.has_trajectory:
            tensors["trajectory"] = torch.stack(samples).cpu()
        return tensors

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


def _slug(text: str, length: int = 40) -> str:
    """Make a file name of a prompt: lower-case words and hyphens."""
    words = re.sub(r"[^\w]+", "-", text.lower(), flags=re.ASCII).strip("-")
    return words[:length].strip("-") or "edit"
