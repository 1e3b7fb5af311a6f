"""Several clips in one batch give what the stages give for each clip alone."""

from dataclasses import fields, replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from pipelines import decode
from videos import ffmpeg, read_back

from cogedit.artifacts import read_artifact
from cogedit.config import Settings
from cogedit.errors import UsageError
from cogedit.lab import world
from cogedit.lab.batch_pipeline import BatchPipeline, as_exported
from cogedit.lab.cases import change_mask, make_case
from cogedit.lab.configurations import BUILT_IN, Configuration, Inversion, find_configuration
from cogedit.lab.edit_metrics import Answer, measure, to_frames
from cogedit.lab.evaluation import exact_masks
from cogedit.media.encoding import Encoding
from cogedit.media.metrics import MAX_PSNR
from cogedit.media.writer import write_video
from cogedit.models.checkpoint import find_checkpoint
from cogedit.stages import encode, export, invert, load, reconstruct
from cogedit.types import InvertSettings, LoadSettings, ReconstructSettings

STEPS = 3
# Short ones: the tiny tokenizer makes a token of nearly every letter and keeps 16.
CAPTIONS = ["red", "a cat"]
PROMPTS = ["blue star", "dog"]
SEEDS = [42, 1042]
EXACT_MASKS = torch.stack(
    [torch.from_numpy(change_mask(make_case(seed, "color"))) for seed in (0, 1)]
)


@pytest.fixture(scope="module")
def settings(world_pipeline, tmp_path_factory):
    return Settings(
        model=str(world_pipeline),
        dtype="fp32",
        device="cpu",
        workspace=tmp_path_factory.mktemp("workspace"),
        load=LoadSettings(width=world.WIDTH, height=world.HEIGHT, max_num_frames=9),
    )


@pytest.fixture(scope="module")
def clips(settings, tmp_path_factory):
    """Two latents artifacts, and the frames that they were made from."""
    artifacts, frames = [], []
    for seed in (0, 1):
        video = tmp_path_factory.mktemp("videos") / f"{seed}.mp4"
        write_video(world.render(world.sample_spec(seed, "held_out")), video, fps=Fraction(8))
        loaded = load(video, settings)
        frames.append(read_artifact(loaded.path, "frames").tensors["frames"].numpy())
        artifacts.append(encode(loaded.path, settings).path)
    return artifacts, frames


@pytest.fixture(scope="module")
def pipeline(world_pipeline):
    checkpoint = find_checkpoint(str(world_pipeline))
    return BatchPipeline(checkpoint, device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="module")
def mask_files(tmp_path_factory):
    """The exact masks as videos, lossless."""
    folder = tmp_path_factory.mktemp("masks")
    size = ["-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{world.WIDTH}x{world.HEIGHT}"]
    size += ["-r", str(world.FPS), "-i", "-"]
    paths = []
    for index, mask in enumerate(EXACT_MASKS):
        paths.append(folder / f"{index}.mkv")
        ffmpeg(*size, "-c:v", "ffv1", paths[-1], stdin=(mask.numpy() * 255).tobytes())
    return paths


def tensor(path, name):
    return read_artifact(path).tensors[name]


def assert_close(found, expected):
    scale = float(expected.abs().max())
    assert float((found - expected).abs().max()) < 1e-4 * scale


def test_encoding_is_the_stage_s_to_the_bit(clips, pipeline):
    artifacts, frames = clips
    expected = torch.cat([tensor(path, "latents") for path in artifacts])
    assert torch.equal(pipeline.encode(frames), expected)


# Every setting off its default, so that none can be forgotten here.
EVERYTHING = Configuration(
    "everything",
    Inversion(
        InvertSettings(
            prompt="old",
            guidance_scale=1.5,
            num_inference_steps=60,  # of which `with_steps` makes 4
            inverse="upstream",
            inversion_iterations=2,
            low_levels=1,
            window_overlap=0,  # of longer clips, whose windows the batch is given
        )
    ),
    ReconstructSettings(
        prompt="",
        negative_prompt="bad",
        unconditional="source",
        guidance_scale=2.5,
        guidance_steps=(0.0, 0.8),
        guidance_reuse=0.4,
        num_inference_steps=50,  # and 3 of these
        solver="dpm++2m",
        seed=7,
        start="random",
        start_noise=0.3,
        start_step=1,
        injection_strength=0.6,
        injection_mode="queries-keys",
        injection_tokens="all",
        injection_recentering=0.3,
        injection_steps=(0.0, 0.8),
        injection_layers=(1, 2),
        reference_prompt="edit",
        reference_rows="two",
        mask_dilation=0,
        auto_mask=True,
        auto_mask_threshold=0.6,
        # Of the flow, and off its default only for the check below: SAMPLED is the other method.
        method="flow",
        source_guidance_scale=1.2,
    ),
)
SAMPLED = replace(
    EVERYTHING,
    name="sampled",
    reconstruct=replace(EVERYTHING.reconstruct, method="injection", start_step=0),
)
CORRECTED = Configuration("corrected", Inversion(InvertSettings(inversion_iterations=3)))


def test_everything_is_off_its_default():
    """A new setting fails here until the batch is known to follow it."""
    for settings in (EVERYTHING.inversion.settings, EVERYTHING.reconstruct):
        for item in fields(settings):
            if item.name == "mask_keep":  # how a file is read; a batch is given the masks
                continue
            if not (isinstance(settings, ReconstructSettings) and item.name == "prompt"):
                assert getattr(settings, item.name) != item.default, item.name


# The others change one setting each; EVERYTHING and SAMPLED change all of them together.
TOGETHER = (
    "upstream",
    "default",
    "fast",
    "queries-keys",
    "image-queries-keys",
    "auto-mask",
    "exact-mask",
    "flow-noise",
)


@pytest.mark.parametrize(
    "configuration",
    [*(find_configuration(name) for name in TOGETHER), EVERYTHING, SAMPLED, CORRECTED],
    ids=lambda configuration: configuration.name,
)
def test_a_batch_computes_what_the_stages_compute(
    configuration, clips, pipeline, settings, mask_files
):
    configuration = configuration.with_steps(STEPS)
    asked = configuration.reconstruct
    asked = replace(asked, start_step=min(asked.start_step, STEPS - 1))
    configuration = replace(configuration, reconstruct=asked)
    inversion = configuration.inversion
    artifacts, _ = clips
    latents = torch.cat([tensor(path, "latents") for path in artifacts])
    inverted = pipeline.invert(latents, inversion, CAPTIONS)
    masks = None
    if configuration.exact_mask:
        masks = EXACT_MASKS
    elif configuration.reconstruct.auto_mask:
        masks = pipeline.find_masks(inverted, configuration.reconstruct, prompts=PROMPTS)
        assert configuration.name == "auto-mask" or 0 < float(masks.float().mean()) < 1
    edited = pipeline.edit(
        inverted, configuration.reconstruct, prompts=PROMPTS, seeds=SEEDS, masks=masks
    )
    for index, path in enumerate(artifacts):
        prompt = CAPTIONS[index] if inversion.under_caption else inversion.settings.prompt
        own = replace(
            settings,
            invert=replace(inversion.settings, prompt=prompt),
            reconstruct=replace(configuration.reconstruct, seed=SEEDS[index]),
        )
        stored, trajectory = invert(path, own).path, inverted.trajectory
        stage = tensor(stored, "trajectory")
        assert trajectory.timesteps == tuple(tensor(stored, "timesteps").tolist())
        assert_close(trajectory.samples[:, index : index + 1], stage)
        given = mask_files[index] if configuration.exact_mask else None
        [written] = reconstruct(stored, [PROMPTS[index]], own, mask=given)
        assert_close(edited[index : index + 1], tensor(written.path, "latents"))
        if masks is not None:
            assert torch.equal(masks[index], tensor(written.path, "mask"))


def test_what_lies_outside_the_mask_is_put_back(clips, pipeline, settings, mask_files):
    artifacts, frames = clips
    rendered = [
        Answer(make_case(seed, "color"), *pipeline.decode(pipeline.encode(frames)))
        for seed in (0, 1)
    ]
    answers = [
        replace(one, source_round_trip=pipeline.decode(tensor(path, "latents"))[0])
        for one, path in zip(rendered, artifacts, strict=True)
    ]
    assert torch.equal(exact_masks(answers), EXACT_MASKS)
    configuration = BUILT_IN["exact-mask"].with_steps(STEPS)
    own = replace(
        settings,
        invert=replace(configuration.inversion.settings, prompt=CAPTIONS[0]),
        reconstruct=configuration.reconstruct,
    )
    [written] = reconstruct(artifacts[0], [PROMPTS[0]], own, mask=mask_files[0])
    exported = decode(written.path, own)
    decoded = pipeline.decode(tensor(written.path, "latents"))
    [back] = as_exported(decoded, answers[:1], masks=EXACT_MASKS[:1])
    assert np.array_equal(to_frames(back), exported)
    outside = EXACT_MASKS[0].numpy() == 0
    assert np.array_equal(back[outside], answers[0].source_round_trip[outside])
    assert measure(back, answers[0]).background_round_trip_psnr == MAX_PSNR


@pytest.mark.parametrize("masked", [False, True])
def test_edges_are_aligned_as_the_export_aligns_them(
    masked, pipeline, settings, mask_files, tmp_path
):
    case = make_case(0, "color")
    video, lossless = tmp_path / "clip.mkv", Encoding("ffv1", None, lossless=True)
    write_video(world.render(case.source), video, fps=Fraction(8), encoding=lossless)
    configuration = BUILT_IN["default"].with_steps(STEPS)
    own = replace(
        settings,
        invert=configuration.inversion.settings,
        reconstruct=configuration.reconstruct,
        export=replace(settings.export, align_edges=6),
    )
    round_trip = pipeline.decode(tensor(encode(video, own).path, "latents"))[0]
    given = mask_files[0] if masked else None
    [written] = reconstruct(video, [PROMPTS[0]], own, mask=given)
    exported = decode(written.path, own)
    decoded = pipeline.decode(tensor(written.path, "latents"))
    answer, masks = Answer(case, round_trip, round_trip), EXACT_MASKS[:1] if masked else None
    [shown] = as_exported(decoded, [answer], masks=masks, align_edges=6)
    assert np.array_equal(to_frames(shown), exported)
    assert not np.array_equal(exported, to_frames(decoded[0]))
    if masked:
        outside = EXACT_MASKS[0].numpy() == 0
        assert np.array_equal(shown[outside], world.render(case.source)[outside])


def test_figures_of_a_batch_are_those_of_the_stages(clips, pipeline, settings):
    configuration = BUILT_IN["default"].with_steps(STEPS)
    artifacts, frames = clips
    case = make_case(1, "color")
    round_trips = pipeline.decode(pipeline.encode([frames[1], world.render(case.right)]))
    answer = Answer(case, *round_trips)
    latents = pipeline.encode(frames)
    inverted = pipeline.invert(latents, configuration.inversion, CAPTIONS)
    edited = pipeline.edit(
        inverted,
        configuration.reconstruct,
        prompts=PROMPTS,
        seeds=SEEDS,
    )
    own = replace(
        settings,
        invert=configuration.inversion.settings,
        reconstruct=replace(configuration.reconstruct, seed=SEEDS[1]),
    )
    [written] = reconstruct(artifacts[1], [PROMPTS[1]], own)
    from_batch = measure(pipeline.decode(edited)[1], answer)
    from_stage = measure(pipeline.decode(tensor(written.path, "latents"))[0], answer)
    assert from_batch.counterfactual_psnr == pytest.approx(from_stage.counterfactual_psnr, abs=0.01)
    assert from_batch.background_psnr == pytest.approx(from_stage.background_psnr, abs=0.01)
    assert from_batch.target_seen == from_stage.target_seen


def test_decoding_is_the_export_s(clips, pipeline, settings, tmp_path):
    artifacts, _ = clips
    [decoded] = pipeline.decode(tensor(artifacts[0], "latents"))
    assert decoded.min() >= 0
    assert decoded.max() <= 255
    lossless = replace(settings, export=replace(settings.export, lossless=True))
    export(artifacts[0], lossless, output=tmp_path / "out.mkv")
    shown = read_back(tmp_path / "out.mkv", width=world.WIDTH, height=world.HEIGHT)
    assert np.abs(to_frames(decoded) - shown.astype(int)).max() <= 1


def test_resampling_is_plain_denoising_under_the_inversion_s_prompt(clips, pipeline, settings):
    inversion = BUILT_IN["half-strength"].with_steps(STEPS).inversion
    artifacts, frames = clips
    inverted = pipeline.invert(pipeline.encode(frames), inversion, CAPTIONS)
    resampled = pipeline.resample(inverted, inversion)
    for index, path in enumerate(artifacts):
        plain = replace(BUILT_IN["no-injection"].reconstruct, guidance_scale=1.0, start="inverted")
        own = replace(
            settings,
            invert=replace(inversion.settings, prompt=CAPTIONS[index]),
            reconstruct=plain,
        )
        [written] = reconstruct(path, [CAPTIONS[index]], own)
        assert_close(resampled[index : index + 1], tensor(written.path, "latents"))


def test_each_clip_has_its_own_prompt(clips, pipeline):
    _, frames = clips
    configuration = BUILT_IN["default"].with_steps(STEPS)
    latents = pipeline.encode([frames[0], frames[0]])
    inverted = pipeline.invert(latents, configuration.inversion, CAPTIONS)

    def edit(prompts):
        return pipeline.edit(
            inverted,
            configuration.reconstruct,
            prompts=prompts,
            seeds=[42, 42],
        )

    edited, same = edit(PROMPTS), edit([PROMPTS[0]] * 2)
    assert not np.allclose(edited[0], edited[1], atol=1e-3)
    assert_close(same[1], same[0])


def test_a_model_for_other_clips_is_refused(pipeline_15):
    checkpoint = find_checkpoint(str(pipeline_15))
    with pytest.raises(UsageError, match="clips"):
        BatchPipeline(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
