"""Models that take a first frame, against diffusers' own pipeline and its transformer's forward."""

from dataclasses import replace

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXImageToVideoPipeline
from pipelines import make_15_i2v_like, make_i2v_like
from references import written_out
from torch.distributed import HashStore  # type: ignore[attr-defined]

from cogedit.diffusion.schedule import Schedule
from cogedit.diffusion.trajectory import Trajectory
from cogedit.lab.configurations import UPSTREAM_EDIT
from cogedit.models.attention import Injection
from cogedit.models.auto_mask import find_masks
from cogedit.models.checkpoint import find_checkpoint
from cogedit.models.denoiser import Denoiser
from cogedit.models.first_frame import encode_first_frame, make_condition
from cogedit.models.forward import run_rows
from cogedit.models.layer_probe import probe_levels, short_edit
from cogedit.models.loading import load_transformer
from cogedit.models.predictor import InvertedClips, Predictor
from cogedit.models.ranks import Ranks
from cogedit.models.rotary import image_rotary_emb
from cogedit.models.rows import EditPrompts
from cogedit.models.sampling import edit_latents, invert_latents
from cogedit.types import InvertSettings, TransformerSettings

CPU = torch.device("cpu")
CLOSE = 1e-5
EMPTY, PROMPT, CAPTION = "", "a blue cat running in snow", "a dog"
PLAIN = replace(UPSTREAM_EDIT, prompt=PROMPT, start="inverted", injection_strength=0.0)


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


EMBEDS = {text: draw(1, 16, 32, seed=n) for n, text in enumerate((EMPTY, PROMPT, CAPTION))}


@pytest.fixture(scope="module", params=[make_i2v_like, make_15_i2v_like])
def model(request, tmp_path_factory):
    """Our checkpoint and transformer, and diffusers' pipeline of the same folder.

    Its VAE has next to no variance: diffusers draws the latents of which we take the mode.
    """
    folder = request.param(tmp_path_factory.mktemp("model") / "tiny")
    stock = CogVideoXImageToVideoPipeline.from_pretrained(folder, dtype=torch.float32)
    stock.scheduler = CogVideoXDDIMScheduler.from_config(stock.scheduler.config)
    stock.set_progress_bar_config(disable=True)
    last = stock.vae.encoder.conv_out.conv
    with torch.no_grad():
        last.weight[16:] = 0
        last.bias[16:] = -30
    checkpoint = find_checkpoint(str(folder))
    return checkpoint, load_transformer(checkpoint, device=CPU, dtype=torch.float32), stock


def pixels_of(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, 64, 96, 3), dtype=torch.uint8, generator=generator)


def condition_of(model, seed):
    """The condition of a clip of 9 frames, from encoding its first."""
    checkpoint, _, stock = model
    pad = checkpoint.geometry.num_pad_frames(3)
    first = encode_first_frame(stock.vae, pixels_of(seed))
    return make_condition(first, num_latent_frames=3, num_pad_frames=pad)


def test_the_condition_is_that_of_diffusers(model):
    checkpoint, transformer, stock = model
    assert checkpoint.takes_first_frame
    condition = condition_of(model, seed=1)
    length = condition.shape[1]
    image = stock.video_processor.preprocess(pixels_of(1).permute(0, 3, 1, 2) / 255.0, 64, 96)
    with torch.no_grad():  # `__call__` counts the pad frames among the clip's
        latents, expected = stock.prepare_latents(
            image, 1, 16, 4 * (length - 1) + 1, 64, 96, torch.float32, CPU
        )
    assert length == (3 if transformer.config.patch_size_t is None else 4)
    assert condition.dtype == torch.float32
    assert condition.shape == expected.shape == latents.shape
    assert float((condition - expected).abs().max()) < CLOSE
    assert float(condition[:, 0].std()) > 1e-3
    assert not condition[:, 1:].any()


def test_plain_generation_is_that_of_diffusers(model):
    _, transformer, stock = model
    condition, num_steps = condition_of(model, seed=1), 4
    noise = draw(*condition.shape, seed=3)
    image = pixels_of(1).permute(0, 3, 1, 2) / 255.0
    expected = stock(
        image,
        prompt_embeds=EMBEDS[PROMPT],
        negative_prompt_embeds=EMBEDS[EMPTY],
        height=64,
        width=96,
        num_frames=9,
        num_inference_steps=num_steps,
        guidance_scale=3.0,
        latents=noise,
        output_type="latent",
    ).frames
    table = stock.scheduler.alphas_cumprod
    schedule = Schedule.trailing(table, num_steps)
    reference = Trajectory.of(noise.expand(num_steps, *noise.shape), noise, schedule)
    found = edit_latents(
        Predictor(transformer, table, EMBEDS),
        InvertedClips(reference, (EMPTY,), condition),
        [replace(PLAIN, guidance_scale=3.0)],
    )[-1]
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < CLOSE
    other = condition_of(model, seed=2)
    assert float((other - condition).abs().max()) > 1e-3


def by_hand(model, samples, conditions, texts, timestep=500):
    """v of rows, by the transformer's own forward."""
    _, transformer, _ = model
    with torch.no_grad():
        return transformer(
            hidden_states=torch.cat([torch.cat(samples), torch.cat(conditions)], dim=2),
            encoder_hidden_states=torch.cat([EMBEDS[text] for text in texts]),
            timestep=torch.full((len(samples),), timestep),
            ofs=torch.full((1,), 2.0),
            image_rotary_emb=image_rotary_emb(transformer, (samples[0].shape[1], 8, 12)),
            return_dict=False,
        )[0]


@pytest.mark.parametrize("max_rows", [None, 1])
def test_rows_have_the_first_frame_of_their_own_clip(model, max_rows):
    _, transformer, _ = model
    source, edited = condition_of(model, seed=1), condition_of(model, seed=2)
    x, x_ref = draw(*source.shape, seed=4), draw(*source.shape, seed=5)
    injection = Injection(0.5, layers=(0, 1))
    denoiser = Denoiser(
        transformer,
        embeds=torch.cat([EMBEDS[EMPTY], EMBEDS[PROMPT], EMBEDS[CAPTION]]),
        prompts=[EditPrompts(1, 0, 2, 2)],
        condition=edited,
        reference_condition=source,
        guidance_scale=6.0,
        injection=injection,
        reference_velocity=True,
    )
    with written_out(transformer, (2, 2), injection):
        rows = by_hand(model, [x, x, x_ref], [edited, edited, source], [EMPTY, PROMPT, CAPTION])
    with run_rows(transformer, TransformerSettings(max_rows=max_rows)):
        found = denoiser(x, 500, x_ref)
    assert torch.allclose(found.edit, rows[:1] + 6 * (rows[1:2] - rows[:1]), atol=CLOSE)
    assert torch.allclose(found.reference, rows[2:], atol=CLOSE)
    for wrong in ([source, source, source], [edited, edited, edited]):
        other = by_hand(model, [x, x, x_ref], wrong, [EMPTY, PROMPT, CAPTION])
        assert not torch.allclose(other, rows, atol=1e-3)


def test_an_edit_of_nothing_is_the_inversion_again(model):
    """A flow from the source's prompt and frame to the same moves nothing; to another frame, it."""
    _, transformer, stock = model
    table = stock.scheduler.alphas_cumprod
    source, edited = condition_of(model, seed=1), condition_of(model, seed=2)
    predictor = Predictor(transformer, table, EMBEDS)
    inversion = InvertSettings(num_inference_steps=3, inverse="upstream")
    reference = invert_latents(
        predictor, draw(*source.shape, seed=6), [inversion], condition=source
    )
    inverted = InvertedClips(reference, (EMPTY,), source)
    flow = replace(PLAIN, prompt=EMPTY, method="flow", guidance_scale=1.0, injection_steps=(0, 0))

    def edit(*conditions, **options):
        return edit_latents(
            predictor,
            inverted,
            [replace(flow, seed=seed) for seed, _ in enumerate(conditions)],
            condition=torch.cat(conditions),
            **options,
        )[-1]

    kept, moved = edit(source, edited)
    assert torch.equal(kept, reference.latents[0])
    assert not torch.allclose(moved, kept, atol=1e-3)
    assert torch.allclose(edit(edited)[0], moved, atol=CLOSE)

    def mask(condition):
        return find_masks(predictor, inverted, [flow], condition=condition)

    assert not mask(source).any()
    assert not mask(None).any()  # the clip's own
    assert mask(edited).any()


def test_a_probe_leaves_the_source_out_and_not_its_frame(model):
    _, transformer, stock = model
    table = stock.scheduler.alphas_cumprod
    source = condition_of(model, seed=1)
    levels = (299, 699, 999)
    reference = Trajectory(draw(3, *source.shape, seed=7), draw(*source.shape, seed=8), levels)
    samples = draw(3, *source.shape, seed=9)
    edit = short_edit(replace(PLAIN, injection_strength=1.0), len(levels))
    found = probe_levels(
        Predictor(transformer, table, EMBEDS),
        InvertedClips(reference, (EMPTY,), source),
        edit,
        samples=samples,
        num_together=14,
    )
    level = found[0]
    assert level.timestep == 699
    denoiser = Denoiser(
        transformer,
        embeds=EMBEDS[PROMPT],
        prompts=[EditPrompts(0, None, 0, 0)],  # upstream's reference has the edit's prompt
        injection=Injection.of(edit, 1.0),
        condition=source,
        reference_condition=source,
    )
    x, abar = samples[0], float(table[699])
    with run_rows(transformer):
        alone = denoiser.velocity(x, 699)
        whole = denoiser(x, 699, reference.at(699)).edit
    clean = abar**0.5 * x - (1 - abar) ** 0.5 * whole
    change = (1 - abar) ** 0.5 * (whole - alone)
    assert level.whole == pytest.approx(float(change.norm() / clean.norm()), rel=1e-3)


def test_ranks_answer_velocities_without_first_frames(model):
    _, transformer, _ = model
    conditions = {
        "condition": condition_of(model, 2),
        "reference_condition": condition_of(model, 1),
    }
    options = {
        "embeds": torch.cat([EMBEDS[EMPTY], EMBEDS[PROMPT]]),
        "prompts": [EditPrompts(1, 0, 0, 0)],
        "guidance_scale": 6.0,
        "injection": Injection(1.0),
        **conditions,
    }
    shape = conditions["condition"].shape
    x, x_ref = draw(*shape, seed=4), draw(*shape, seed=5)
    ranks = Ranks(HashStore(), 0, 1, run_id="r")
    try:
        with run_rows(transformer):
            alone = Denoiser(transformer, **options)(x, 500, x_ref).edit
            shared = Denoiser(transformer, **options, ranks=ranks)(x, 500, x_ref).edit
    finally:
        ranks.close()
    assert torch.equal(shared, alone)
