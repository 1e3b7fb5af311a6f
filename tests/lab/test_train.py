"""The recipe at tiny size: it learns, stops, continues and ends in a pipeline that loads."""

import json
from dataclasses import dataclass, replace
from operator import attrgetter

import numpy as np
import pytest
import torch
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel

from cogedit.errors import UsageError
from cogedit.lab import train, world
from cogedit.lab.components import (
    COARSE_PATCH_SIZE,
    PATCH_SIZE,
    export_pipeline,
    rotary_embeddings,
)
from cogedit.lab.render import ClipTable, render_pixels
from cogedit.lab.train_transformer import TransformerTraining, train_transformer
from cogedit.lab.train_vae import (
    LinearCodec,
    VaeTraining,
    encode_batch,
    evaluate_vae,
    sample_specs,
    train_vae,
)
from cogedit.lab.training import Optimizers, TrainingSchedule, average_of
from cogedit.models.vae import encode_frames


@dataclass(frozen=True)
class SmallVae(VaeTraining):
    """A narrow VAE, and a codec of few clips."""

    block_out_channels: tuple[int, ...] = (4, 4, 4)
    codec_clips: int = 16


@dataclass(frozen=True)
class SmallTransformer(TransformerTraining):
    """Few layers of few channels."""

    num_layers: int = 2
    num_attention_heads: int = 2
    attention_head_dim: int = 32


# Crops and no codec: shares of a run that stops early are other numbers of steps.
VAE = SmallVae(
    TrainingSchedule(4, eval_every=2, decay_fraction=0.0),
    batch_size=1,
    codec_fraction=0.0,
    crop_fraction=1.0,
    eval_clips=2,
)
TRANSFORMER = SmallTransformer(
    TrainingSchedule(4, eval_every=2, decay_fraction=0.0), batch_size=4, num_clips=8, eval_clips=8
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a trained VAE, and the VAE."""
    out = tmp_path_factory.mktemp("vae")
    return out, train_vae(VAE, out)


def weights(module):
    return torch.cat([param.detach().flatten() for param in module.parameters()])


def shorter(settings, steps):
    return replace(settings, schedule=replace(settings.schedule, steps=steps))


def train_on(run, settings, **options):
    """Train a transformer on the VAE of the run, whose clips are encoded once for all tests."""
    folder, _ = run
    return train_transformer(settings, folder / "vae", encoded=folder / "latents.pt", **options)


def test_a_resumed_vae_run_is_the_same_run(run, tmp_path):
    out, straight = run
    train_vae(shorter(VAE, 2), tmp_path)
    resumed = train_vae(VAE, tmp_path)
    torch.testing.assert_close(weights(resumed), weights(straight), rtol=1e-3, atol=1e-5)
    assert evaluate_vae(straight, 8)["latent_std"] == pytest.approx(1.0, abs=0.1)
    history = json.loads((out / "vae.json").read_text())
    assert [figures["step"] for figures in history] == [0, 2, 4]


def test_batches_are_encoded_as_the_stages_encode_clips(run):
    _, vae = run
    pixels = render_pixels(sample_specs(3, "held_out"))
    expected = torch.cat([encode_frames(vae, clip.movedim(1, 0)) for clip in pixels])
    torch.testing.assert_close(encode_batch(vae, pixels), expected, rtol=1e-3, atol=1e-4)


def test_a_resumed_transformer_run_is_the_same_run(run, tmp_path):
    for steps in (2, 4):
        resumed = train_on(run, shorter(TRANSFORMER, steps), out=tmp_path / "a")
    straight = train_on(run, TRANSFORMER, out=tmp_path / "b")
    for part in ("transformer", "text_encoder"):
        torch.testing.assert_close(
            weights(getattr(resumed, part)), weights(getattr(straight, part)), rtol=1e-3, atol=1e-5
        )
    export_pipeline(straight, tmp_path / "pipeline")
    loaded = CogVideoXPipeline.from_pretrained(tmp_path / "pipeline", torch_dtype=torch.float32)
    frames = loaded(
        "a red circle",
        height=64,
        width=64,
        num_frames=9,
        num_inference_steps=2,
        max_sequence_length=12,
        output_type="np",
    ).frames
    assert frames.shape == (1, 9, 64, 64, 3)
    assert np.isfinite(frames).all()
    cos, _ = rotary_embeddings(loaded, num_latent_frames=3, device=torch.device("cpu"))
    assert cos.shape == (192, 32)


def test_a_run_starts_from_the_blocks_of_a_coarse_one(run, tmp_path):
    coarse = replace(shorter(TRANSFORMER, 2), patch_size=COARSE_PATCH_SIZE)
    trained = train_on(run, coarse, out=tmp_path / "coarse")
    # A step of size 0: what is there comes from the coarse run.
    started = train_on(
        run,
        replace(TRANSFORMER, schedule=TrainingSchedule(1, lr=0.0)),
        out=tmp_path / "fine",
        start_from=tmp_path / "coarse" / "transformer.pt",
    )
    for part in ("transformer.transformer_blocks", "transformer.norm_final", "text_encoder"):
        assert torch.equal(
            weights(attrgetter(part)(started)), weights(attrgetter(part)(trained))
        ), part
    assert started.transformer.config.patch_size == PATCH_SIZE == 2
    assert started.transformer.proj_out.out_features == 2 * 2 * 4


def test_a_run_with_a_first_frame_begins_as_the_model_of_text(run, tmp_path):
    text = train_on(run, shorter(TRANSFORMER, 2), out=tmp_path / "text")
    settings = replace(TRANSFORMER, takes_first_frame=True, keeps_text_encoder=True)
    clean, condition = torch.randn(2, 1, 3, 4, 16, 16)

    def trained(lr):
        pipeline = train_on(
            run,
            replace(settings, schedule=TrainingSchedule(2, lr=lr, warmup_steps=1)),
            out=tmp_path / f"frame-{lr}",
            start_from=tmp_path / "text" / "transformer.pt",
        )
        assert torch.equal(weights(pipeline.text_encoder), weights(text.text_encoder))
        return pipeline.transformer

    @torch.no_grad()
    def predict(transformer, latents):
        embeds = torch.ones(1, 12, 128)
        cos, sin = rotary_embeddings(text, num_latent_frames=3, device=torch.device("cpu"))
        return transformer(latents, embeds, torch.tensor([500]), image_rotary_emb=(cos, sin)).sample

    begun = predict(trained(0.0), torch.cat([clean, condition], dim=2))
    torch.testing.assert_close(begun, predict(text.transformer, clean), rtol=1e-4, atol=1e-5)
    on = trained(1e-3)
    with_frame, without = (
        predict(on, torch.cat([clean, shown * condition], dim=2)) for shown in (1, 0)
    )
    assert (with_frame - without).abs().max() > 1e-4


def test_one_command_trains_all_parts_in_the_time_given(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "VaeTraining", SmallVae)
    monkeypatch.setattr(train, "TransformerTraining", SmallTransformer)
    monkeypatch.setattr(train, "TIMED_EVAL_CLIPS", {"vae": 2, "transformer": 8})
    arguments = ["all", "--minutes", "0.02", "--batch-size", "2", "--num-clips", "8"]
    arguments += ["--oracle-clips", "2", "--device", "cpu"]
    made, more = tmp_path / "made", tmp_path / "more"
    assert train.main([*arguments, "--out", str(made)]) == 0
    parts = ("vae", "coarse/transformer", "transformer")
    assert all((made / f"{part}.json").is_file() for part in parts)
    # Its weights are trained on: the run begins where the other ended, and has no coarse model.
    on = ["--start-from", str(made / "pipeline"), "--keep-text-encoder"]
    assert train.main([*arguments, "--out", str(more), *on]) == 0
    first, second = (
        CogVideoXPipeline.from_pretrained(folder / "pipeline", torch_dtype=torch.float32)
        for folder in (made, more)
    )
    assert torch.equal(weights(second.text_encoder), weights(first.text_encoder))
    assert not torch.equal(weights(second.transformer), weights(first.transformer))
    assert not (more / "coarse").exists()
    ended, begun = (
        json.loads((folder / "vae.json").read_text())[index]["psnr"]
        for folder, index in ((made, -1), (more, 0))
    )
    assert begun == pytest.approx(ended, abs=0.5)
    arguments = ["first-frame", "--minutes", "0.01", "--batch-size", "2", "--num-clips", "8"]
    arguments += ["--device", "cpu", "--start-from", str(made / "pipeline")]
    assert train.main([*arguments, "--out", str(tmp_path / "frame")]) == 0
    transformer = CogVideoXTransformer3DModel.from_pretrained(tmp_path / "frame" / "first_frame")
    config = transformer.config
    assert (config.in_channels, config.out_channels) == (8, 4)


def test_the_linear_codec_keeps_most_of_a_clip():
    codec = LinearCodec(render_pixels(sample_specs(32, "train")), spatial=4, temporal=4, channels=4)
    pixels = render_pixels(sample_specs(4, "held_out"))
    code = codec.encode(pixels)
    assert code.shape == (4, 4, 3, 16, 16)
    flat = code.permute(0, 2, 3, 4, 1).reshape(-1, 4)
    blocks = pixels.reshape(4, 3, 9, 16, 4, 16, 4).mean(dim=(4, 6))
    target = blocks[:, :, [0, 4, 8]].permute(0, 2, 3, 4, 1).reshape(-1, 3)
    design = torch.cat([flat, torch.ones(len(flat), 1)], dim=1)
    left = target - design @ torch.linalg.lstsq(design, target).solution
    assert left.square().mean() < 0.1 * target.var()


@pytest.mark.parametrize(("num_clips", "num_frames"), [(200, 9), (40, 17)])
def test_clips_are_rendered_in_torch_as_in_numpy(num_clips, num_frames):
    specs = [world.sample_spec(seed, num_frames=num_frames) for seed in range(num_clips)]
    assert {spec.shape for spec in specs} == set(world.SHAPES)
    assert {spec.texture.kind for spec in specs} == set(world.TEXTURES)
    assert {spec.companion is None for spec in specs} == {True, False}
    levels = (render_pixels(specs) + 1) * 127.5
    expected = np.stack([world.render(spec) for spec in specs])
    difference = np.abs(levels.permute(0, 2, 3, 4, 1).numpy() - expected)
    assert difference.max() <= 1.01  # float32 in another order, rounded to levels
    assert difference.mean() < 0.01


def test_clips_of_several_lengths_are_not_rendered_together():
    with pytest.raises(UsageError, match=r"\[9, 17\]"):
        render_pixels([world.sample_spec(0), world.sample_spec(0, num_frames=17)])


def test_a_part_of_a_clip_is_rendered_as_in_the_whole():
    clips = ClipTable([world.sample_spec(seed) for seed in range(6)])
    rows, corner = torch.tensor([4, 1, 4]), torch.tensor([[0, 0], [32, 5], [7, 31]])
    parts = clips.pixels(rows, corner=corner, size=32)
    whole = clips.pixels(slice(None))
    for part, row, (x, y) in zip(parts, rows, corner, strict=True):
        torch.testing.assert_close(
            part, whole[row][:, :, y : y + 32, x : x + 32], rtol=0, atol=0.008
        )


def test_optimizers_fit_a_convolution():
    torch.manual_seed(0)
    target, model = torch.nn.Conv2d(4, 8, 3), torch.nn.Conv2d(4, 8, 3)
    optimizers = Optimizers([model.weight], [model.bias], weight_decay=0.0)
    losses = []
    for _ in range(60):
        x = torch.randn(8, 4, 6, 6)
        loss = (model(x) - target(x)).square().mean()
        loss.backward()
        optimizers.step(0.02)
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


def test_the_learning_rate_rises_stays_and_falls():
    schedule = TrainingSchedule(100, lr=2.0, warmup_steps=10, decay_fraction=0.2)
    rates = [schedule.learning_rate(step, schedule.progress(step, 0.0)) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9:80] == [2.0] * 71
    assert rates[-1] == pytest.approx(0.1)
    assert schedule.learning_rate(200, 2.0) == 0.0
    timed = replace(schedule, minutes=2)
    assert timed.progress(5, 30.0) == 0.25
    assert timed.learning_rate(0, 0.1) == 2.0  # a short run does not spend itself on warming up


def test_the_average_follows_the_weights():
    module = torch.nn.Linear(2, 2)
    average = average_of(module, 0.9)
    with torch.no_grad():
        module.weight.fill_(3.0)
        average.update_parameters(module)
        module.weight.fill_(5.0)
    for _ in range(200):
        average.update_parameters(module)
    torch.testing.assert_close(average.module.weight, torch.full((2, 2), 5.0))
