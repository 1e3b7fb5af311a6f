"""A session loads each part of the model once, makes room where memory is short, and frees all."""

import gc
import hashlib
import shutil
import weakref
from collections import Counter

import pytest
import torch
from pipelines import TINY_PIPELINE
from safetensors.torch import load_file, save_file
from videos import make_video

import cogedit
import cogedit.models.loading
from cogedit.artifacts import read_artifact, read_record
from cogedit.config import read_batch
from cogedit.models.checkpoint import find_checkpoint
from cogedit.models.vae_cost import VAEPlan, VAEWay
from cogedit.models.weights import WeightFile
from cogedit.stages.model import transformer_record
from cogedit.tools.batch import batch
from cogedit.tools.batch_plan import plan_batch

PROMPT = "a blue cat"


FLAGS = {
    "model": str(TINY_PIPELINE),
    "device": "cpu",
    "dtype": "fp32",
    "load.width": 96,
    "load.height": 64,
    "load.max_num_frames": 9,
    "load.frame_rate": "spread",
    "invert.num_inference_steps": 2,
    "reconstruct.guidance_scale": 1.0,
}


def settings_with(folder, **flags):
    given = FLAGS | {"cache": folder / "cache"} | flags
    return cogedit.settings_for(None, given, environ={}, cwd=folder).settings


@pytest.fixture
def video(tmp_path):
    return make_video(tmp_path / "clip.mp4", width=96, height=64, num_frames=9)


class Embedder:
    """Embeds prompts in a session of its own, and keeps what the user was told."""

    def __init__(self, folder, **flags):
        self.settings, self.notes = settings_with(folder, **flags), []

    def embed(self, prompts):
        with cogedit.Session() as session:
            run = cogedit.Run(notify=self.notes.append)
            return session.embed(prompts, self.settings, run=run)


class Counted:
    """Counts the true loaders: each call passes through."""

    def __init__(self, monkeypatch):
        self.loads = Counter()
        for name in ("load_transformer", "load_vae", "load_text_encoder"):
            monkeypatch.setattr(f"cogedit.models.loading.{name}", self._counting(name))
        monkeypatch.setattr(WeightFile, "sample", self._counting_sample())
        self.digests = Counter()
        monkeypatch.setattr(hashlib, "sha256", self._counting_sha256())

    def _counting(self, name):
        load = getattr(cogedit.models.loading, name)

        def loaded(*args, **kwargs):
            self.loads[name] += 1
            return load(*args, **kwargs)

        return loaded

    def _counting_sample(self):
        sample = WeightFile.sample

        def sampled(file):
            self.loads[f"sample {file.path.parent.name}"] += 1
            return sample(file)

        return sampled

    def _counting_sha256(self):
        sha256, counted = hashlib.sha256, self.digests

        class Counting:
            """One running digest; which digests were asked for is counted."""

            def __init__(self, data=b""):
                self._digest = sha256(data)

            def update(self, data):
                self._digest.update(data)

            def digest(self):
                return self._digest.digest()

            def hexdigest(self):
                text = self._digest.hexdigest()
                counted[text] += 1
                return text

        return Counting


ONCE = {
    "load_transformer": 1,
    "load_vae": 1,
    "load_text_encoder": 1,
    "sample transformer": 1,
    "sample vae": 1,
    "sample text_encoder": 1,
}


@pytest.fixture
def model(tmp_path):
    """A checkpoint that this process has not looked up yet."""
    return shutil.copytree(TINY_PIPELINE, tmp_path / "model")


def hashed_twice(counted, folder):
    """The tensors that were hashed more than once, of those that are in one artifact alone."""
    records = [read_record(path) for path in folder.rglob("*.cogedit/*.safetensors")]
    tensors = [(record, tensor) for record in records for tensor in record.tensors]
    digests = [tensor.sha256 for _, tensor in tensors]
    assert all(counted.digests[digest] for digest in digests)
    return [
        (record.kind, tensor.name)
        for record, tensor in tensors
        if digests.count(tensor.sha256) == 1 and counted.digests[tensor.sha256] > 1
    ]


def test_an_edit_loads_each_part_once(tmp_path, video, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counted = Counted(monkeypatch)
    cogedit.edit(video, [PROMPT, "a red fox"], settings_with(tmp_path, model=str(model)))
    assert counted.loads == ONCE
    assert hashed_twice(counted, tmp_path) == []


def test_a_batch_loads_each_part_once(tmp_path, video, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "other.mp4", width=128, height=64, num_frames=9)
    (tmp_path / "edits.csv").write_text(
        "video,prompt\nclip.mp4,a blue cat\nother.mp4,a red fox\nclip.mp4,a dog\n"
    )
    counted = Counted(monkeypatch)
    rows = read_batch(tmp_path / "edits.csv")
    flags = dict(FLAGS, model=str(model), cache=tmp_path / "cache")
    results = batch(plan_batch(rows, flags))
    assert [result.status for result in results] == ["written"] * 3
    assert counted.loads == ONCE
    # The one edit of the other clip has the bytes of its last step, a file of its own.
    assert hashed_twice(counted, tmp_path) == [("edit", "latents")]


def test_a_session_serves_many_calls_and_other_settings(tmp_path, video, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = settings_with(tmp_path, model=str(model))
    alone = cogedit.reconstruct(video, PROMPT, settings)[0].path.read_bytes()
    shutil.rmtree(tmp_path / "clip.cogedit")
    counted = Counted(monkeypatch)
    with cogedit.Session() as session:
        cogedit.reconstruct(video, "a red fox", settings, session=session)
        [shared] = cogedit.reconstruct(video, PROMPT, settings, session=session)
        assert shared.path.read_bytes() == alone
        assert counted.loads["load_transformer"] == counted.loads["load_vae"] == 1
        half = settings_with(tmp_path, model=str(model), dtype="bf16")
        cogedit.reconstruct(video, PROMPT, half, session=session)
        assert counted.loads["load_transformer"] == counted.loads["load_vae"] == 2
    assert counted.loads["sample transformer"] == 0, "the look-up is the process's, not a session's"


def test_an_edit_that_exists_loads_nothing(tmp_path, video, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = settings_with(tmp_path)
    [first] = cogedit.edit(video, [PROMPT], settings)
    counted = Counted(monkeypatch)
    [second] = cogedit.edit(video, [PROMPT], settings)
    assert (second.path, second.reused) == (first.path, True)
    assert not counted.loads


def test_a_model_that_changed_is_looked_up_again(tmp_path, model):
    first = find_checkpoint(str(model)).digest
    weights = model / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: 2 * one for name, one in load_file(weights).items()}, weights)
    assert find_checkpoint(str(model)).digest != first


def alive(kind):
    return sum(issubclass(type(thing), kind) for thing in gc.get_objects())


def parts_alive():
    from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
    from transformers import T5EncoderModel

    kinds = (T5EncoderModel, CogVideoXTransformer3DModel, AutoencoderKLCogVideoX)
    return tuple(map(alive, kinds))


@pytest.mark.parametrize("weights", [None, "fp8"])
def test_leaving_a_session_frees_everything(tmp_path, video, monkeypatch, weights):
    """Hooks around fp8 weights hang in a reference cycle."""
    monkeypatch.chdir(tmp_path)
    before = parts_alive()  # other tests may hold some
    gc.disable()
    try:
        with cogedit.Session() as session:
            cogedit.edit(video, [PROMPT], settings_with(tmp_path, weights=weights), session=session)
            assert parts_alive() == tuple(1 + count for count in before)
        assert parts_alive() == before
    finally:
        gc.enable()


@pytest.mark.parametrize("weights", [None, "fp8", "int8"])
def test_where_memory_is_short_one_part_goes_before_the_next_comes(
    tmp_path, video, monkeypatch, weights
):
    monkeypatch.chdir(tmp_path)
    before = parts_alive()
    seen = {}

    def noting(name):
        load = getattr(cogedit.models.loading, name)

        def loaded(*args, **kwargs):
            found = tuple(now - then for now, then in zip(parts_alive(), before, strict=True))
            seen.setdefault(name, []).append(found)
            return load(*args, **kwargs)

        return loaded

    for name in ("load_transformer", "load_vae", "load_text_encoder"):
        monkeypatch.setattr(f"cogedit.models.loading.{name}", noting(name))
    monkeypatch.setattr("cogedit.models.placement.free_memory", lambda device: 0)
    # Which the VAE alone would be refused for.
    at_once = VAEPlan(VAEWay(), num_bytes=0, whole_bytes=0)
    monkeypatch.setattr("cogedit.stages.session.plan_vae", lambda *args, **settings: at_once)
    gc.disable()  # a part that hangs in a cycle stays until it is collected
    try:
        cogedit.edit(video, [PROMPT, "a red fox"], settings_with(tmp_path, weights=weights))
    finally:
        gc.enable()
    assert {part for loads in seen.values() for part in loads} == {(0, 0, 0)}
    # The VAE encodes and decodes; all prompts were embedded the first time.
    assert {name: len(loads) for name, loads in seen.items()} == {
        "load_vae": 2,
        "load_text_encoder": 1,
        "load_transformer": 1,
    }


class Garbage:
    """A cycle that stands for what a pass leaves behind."""

    def __init__(self):
        self.itself = self


def test_garbage_takes_no_room_from_a_part(tmp_path, video, model, monkeypatch):
    """What waits for the collector must not drive a part out: it is collected, then measured."""
    monkeypatch.chdir(tmp_path)
    counted, left = Counted(monkeypatch), []

    def free_memory(device):
        return 0 if any(ref() is not None for ref in left) else 2**40

    monkeypatch.setattr("cogedit.models.placement.free_memory", free_memory)
    load = cogedit.models.loading.load_vae

    def littering(*args, **kwargs):
        left.append(weakref.ref(Garbage()))
        return load(*args, **kwargs)

    monkeypatch.setattr("cogedit.models.loading.load_vae", littering)
    gc.disable()
    try:
        cogedit.edit(video, PROMPT, settings_with(tmp_path, model=str(model)))
    finally:
        gc.enable()
    assert counted.loads == ONCE


def test_known_prompts_need_no_t5(tmp_path, video, monkeypatch):
    """Not even for another video: its files may be away."""
    monkeypatch.chdir(tmp_path)
    cogedit.edit(video, [PROMPT], settings_with(tmp_path))
    counted = Counted(monkeypatch)
    other = make_video(tmp_path / "other.mp4", width=96, height=64, num_frames=10)
    cogedit.edit(other, [PROMPT], settings_with(tmp_path))
    assert counted.loads["load_transformer"] == 1
    assert counted.loads["load_text_encoder"] == 0


def test_cached_embeddings_have_the_same_values(tmp_path):
    embedder = Embedder(tmp_path, dtype="bf16")
    fresh, cached = embedder.embed([PROMPT, ""]), embedder.embed([PROMPT, ""])
    assert list(fresh) == list(cached) == [PROMPT, ""]
    for text in fresh:
        assert fresh[text].dtype == cached[text].dtype == torch.bfloat16
        assert torch.equal(fresh[text], cached[text])


@pytest.mark.parametrize("prompt", [PROMPT + " and snow" * 300, "a red Zebra"])
def test_what_of_a_prompt_the_model_cannot_read_is_told_in_every_run(tmp_path, prompt):
    embedder = Embedder(tmp_path)
    for _ in range(2):
        embedder.embed([PROMPT, prompt])
    [first, second] = embedder.notes
    assert first == second
    assert prompt[:40] in first


def test_one_token_too_many_is_one_token(tmp_path):
    embedder = Embedder(tmp_path)
    embedder.embed([" ".join(["snow"] * count) for count in range(1, 80)])
    first, second, *_ = embedder.notes
    assert "is 1 token too long" in first
    assert "is 2 tokens too long" in second


def test_the_prompts_of_a_long_list_are_embedded_some_at_a_time_and_wait_on_disk(
    tmp_path, monkeypatch
):
    together, embed = [], cogedit.models.prompts.embed_prompts

    def embedded(prompts, *args, **options):
        together.append(len(prompts))
        return embed(prompts, *args, **options)

    monkeypatch.setattr("cogedit.models.prompts.embed_prompts", embedded)
    counted, settings = Counted(monkeypatch), settings_with(tmp_path)
    texts = [f"snow {number}" for number in range(150)]
    with cogedit.Session() as session:
        session.expect_prompts(texts)
        first = session.embed(texts[:1], settings, run=cogedit.Run())[texts[0]]
        assert sum(together) == 150
        assert max(together) <= 64
        assert len([*(tmp_path / "cache" / "prompts").iterdir()]) == 150
        session.embed(texts[70:71], settings, run=cogedit.Run())
        gone = weakref.ref(first)
        del first
        gc.collect()
        assert gone() is None, "of a list, memory holds what is asked for"
        session.embed(texts[:1], settings, run=cogedit.Run())
    assert counted.loads["load_text_encoder"] == 1


def test_of_a_long_list_memory_keeps_nothing_where_the_disk_takes_nothing(tmp_path):
    """What is to come is embedded when its turn has come."""
    (tmp_path / "cache").write_text("in the way")
    settings, notes = settings_with(tmp_path), []
    texts = [f"snow {number}" for number in range(400)]
    with cogedit.Session() as session:
        session.expect_prompts(texts)
        session.embed(texts[:1], settings, run=cogedit.Run(notify=notes.append))
        assert 0 < sum("is not cached" in note for note in notes) <= 2 * 64
        last = session.embed(texts[399:], settings, run=cogedit.Run())[texts[399]]
    assert last.shape == (1, 64, 32)


def test_a_damaged_embedding_is_told_of_and_made_again(tmp_path):
    embedder = Embedder(tmp_path)
    good = embedder.embed([PROMPT])[PROMPT]
    (path,) = (tmp_path / "cache" / "prompts").iterdir()
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert torch.equal(embedder.embed([PROMPT])[PROMPT], good)
    assert path.read_bytes() == content
    [note] = embedder.notes
    assert str(path) in note


def test_a_cache_that_cannot_be_written_does_not_end_the_run(tmp_path):
    (tmp_path / "cache").write_text("in the way")
    embedder = Embedder(tmp_path)
    assert embedder.embed([PROMPT])[PROMPT].shape == (1, 64, 32)
    assert any(str(tmp_path / "cache") in note for note in embedder.notes)


def test_another_model_has_its_own_embeddings(tmp_path, model):
    weights = model / "text_encoder" / "model.safetensors"
    doubled = {name: 2 * one for name, one in load_file(weights).items()}
    save_file(doubled, weights, {"format": "pt"})
    first = Embedder(tmp_path).embed([PROMPT])[PROMPT]
    second = Embedder(tmp_path, model=str(model)).embed([PROMPT])[PROMPT]
    assert not torch.equal(first, second)
    assert len(list((tmp_path / "cache" / "prompts").iterdir())) == 2


@pytest.mark.parametrize("weights", ["fp8", "int8"])
def test_stored_weights_are_part_of_what_the_transformer_made(
    tmp_path, video, monkeypatch, weights
):
    monkeypatch.chdir(tmp_path)
    whole = cogedit.invert(video, settings_with(tmp_path))
    stored = cogedit.invert(video, settings_with(tmp_path, weights=weights))
    assert (whole.record.model.weights, stored.record.model.weights) == (None, weights)
    assert stored.path != whole.path
    assert stored.record.latents == whole.record.latents  # the VAE has none of it
    a, b = (read_artifact(one.path, "trajectory").tensors["trajectory"] for one in (whole, stored))
    assert 0 < (a - b).norm() / a.norm() < 0.5  # random weights, rounded to 3 bits
    # What goes on from it keeps to it.
    found = cogedit.settings_for(stored.path, {"model": str(TINY_PIPELINE)}, environ={})
    assert found.settings.weights == weights


def test_weights_in_the_dtype_itself_are_no_other_weights(tmp_path):
    checkpoint = find_checkpoint(str(TINY_PIPELINE))
    plain, named = (
        transformer_record(
            checkpoint, settings_with(tmp_path, dtype="bf16", weights=weights), loras=()
        )
        for weights in (None, "bf16")
    )
    assert plain == named


def test_stored_weights_take_less_memory(tmp_path, video, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole, stored = (
        cogedit.estimate(video, settings_with(tmp_path, weights=weights))
        for weights in (None, "fp8")
    )
    assert whole.transformer_bytes == 4 * stored.transformer_bytes
    assert stored.memory_bytes < whole.memory_bytes


@pytest.mark.parametrize("offload", ["auto", "none", "model", "group"])
def test_offload_changes_nothing_on_the_cpu(tmp_path, video, monkeypatch, offload):
    monkeypatch.chdir(tmp_path)
    said = []
    settings = settings_with(tmp_path, offload=offload)
    written = cogedit.invert(video, settings, run=cogedit.Run(notify=said.append))
    assert any("--offload" in one for one in said) == (offload in ("model", "group"))
    # Where the weights were is no part of what was made.
    again = cogedit.invert(video, settings_with(tmp_path))
    assert again.reused
    assert again.path == written.path
