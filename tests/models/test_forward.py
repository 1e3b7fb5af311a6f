"""The blocks row by row: the transformer's own results, without the rows that nobody needs."""

from copy import deepcopy

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from references import WrittenOut, references_of, written_out

from cogedit.errors import UsageError
from cogedit.models.attention import Injection
from cogedit.models.forward import run_rows
from cogedit.models.placement import store_weights
from cogedit.models.rotary import image_rotary_emb
from cogedit.types import TransformerSettings

FRAMES = 4


@pytest.fixture(scope="module")
def load():
    """A tiny transformer with the traits of a checkpoint, and three layers."""

    def make(**traits):
        torch.manual_seed(7)
        return CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            time_embed_dim=16,
            text_embed_dim=32,
            num_layers=3,
            sample_width=8,
            sample_height=8,
            sample_frames=13,
            max_text_seq_length=6,
            **traits,
        ).eval()

    made = {
        "2b": make(use_rotary_positional_embeddings=False),
        "5b": make(use_rotary_positional_embeddings=True),
        "1.5": make(use_rotary_positional_embeddings=True, patch_size_t=2, patch_bias=False),
        "learned": make(
            use_rotary_positional_embeddings=True, use_learned_positional_embeddings=True
        ),
        "ofs": make(use_rotary_positional_embeddings=True, patch_size_t=2, ofs_embed_dim=16),
    }
    return made.__getitem__


TRAITS = ["2b", "5b", "1.5", "learned", "ofs"]


def forward(transformer, num_rows, references=None, *, seed=3):
    """v of random rows at one timestep."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(9, 6, 32, generator=generator)[:num_rows]
    latents = torch.randn(9, FRAMES, 16, 8, 8, generator=generator)[:num_rows]
    ofs = torch.full((1,), 2.0) if transformer.config.ofs_embed_dim else None
    with torch.no_grad():
        return transformer(
            hidden_states=latents,
            encoder_hidden_states=text,
            timestep=torch.full((1,), 500),
            ofs=ofs,
            image_rotary_emb=image_rotary_emb(transformer, (FRAMES, 8, 8)),
            attention_kwargs=references,
            return_dict=False,
        )[0]


ATTENDING = (4, 5, 4, 6)  # two edits under guidance, with three references


def both(transformer, injection, *, velocity=True, settings=None):
    """Seven rows, row by row, and by processors within the model's own forward."""
    with written_out(transformer, ATTENDING, injection):
        expected = forward(transformer, 7)
    references = references_of(ATTENDING, 7, injection, velocity=velocity)
    with run_rows(transformer, settings):
        found = forward(transformer, 7, references)
    return found, expected


@pytest.mark.parametrize("traits", TRAITS)
@pytest.mark.parametrize("num_rows", [1, 3])
def test_without_references_it_is_the_models_own_forward_bit_for_bit(load, traits, num_rows):
    transformer = load(traits)
    expected = forward(transformer, num_rows)
    with run_rows(transformer):
        found = forward(transformer, num_rows)
    assert torch.equal(found, expected)
    assert torch.equal(forward(transformer, num_rows), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_too(load, dtype):
    transformer = deepcopy(load("5b")).to(dtype)
    with torch.autocast("cpu", enabled=False):
        expected = half(transformer)
        with run_rows(transformer):
            found = half(transformer)
    assert torch.equal(found, expected)


def half(transformer):
    """v of one row in the model's own number format."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        return transformer(
            hidden_states=torch.randn(1, 4, 16, 8, 8, generator=generator).to(transformer.dtype),
            encoder_hidden_states=torch.randn(1, 6, 32, generator=generator).to(transformer.dtype),
            timestep=torch.full((1,), 500),
            image_rotary_emb=image_rotary_emb(transformer, (4, 8, 8)),
            return_dict=False,
        )[0]


@pytest.mark.parametrize("traits", TRAITS)
@pytest.mark.parametrize("max_rows", [None, 1, 2, 3])
def test_rows_in_chunks_are_the_rows_at_once(load, traits, max_rows):
    found, expected = both(
        load(traits), Injection(), settings=TransformerSettings(max_rows=max_rows)
    )
    assert torch.allclose(found, expected, atol=1e-5)


# Each value of a column stands beside each value of the others at least once.
@pytest.mark.parametrize(
    ("injection", "velocity", "max_rows"),
    [
        (Injection(1.0, "concatenate", "all", (0, None)), False, None),
        (Injection(1.0, "queries-keys", "all", (1, 2)), True, 1),
        (Injection(1.0, "concatenate", "own-text", (0, 1)), False, 3),
        (Injection(1.0, "concatenate", "image", (2, 3)), True, 2),
        (Injection(0.4, "concatenate", "all", (0, 1)), True, 1),
        (Injection(0.4, "queries-keys", "all", (2, 3)), False, None),
        (Injection(0.4, "concatenate", "own-text", (1, 2)), True, 2),
        (Injection(0.4, "concatenate", "image", (0, None)), False, 3),
        (Injection(0.0, "concatenate", "own-text", (2, 3)), False, 1),
        (Injection(0.0, "queries-keys", "all", (0, None)), True, 3),
        (Injection(1.0, "image-queries-keys", "all", (1, None)), False, 2),
        (Injection(0.4, "image-queries-keys", "own-text", (0, 1)), True, None),
        (Injection(0.4, "image-queries-keys", "image", (1, 3)), False, 1),
        (Injection(0.0, "image-queries-keys", "all", (2, 3)), False, 3),
        (Injection(3.0, "concatenate", "own-text", (0, None)), True, None),
        (Injection(2.0, "concatenate", "own-text", (0, 2), 0.5), True, None),
        (Injection(1.0, "concatenate", "image", (1, None), 1.0), False, 2),
        (Injection(3.0, "concatenate", "all", (1, 2)), False, 2),
    ],
)
def test_injection_is_that_of_the_processors(load, injection, velocity, max_rows):
    settings = TransformerSettings(max_rows=max_rows)
    found, expected = both(load("5b"), injection, velocity=velocity, settings=settings)
    rows = slice(None) if velocity else slice(4)
    assert torch.allclose(found[rows], expected[rows], atol=1e-5)


def test_each_control_of_an_injection_changes_the_edit_rows(load):
    usual, _ = both(load("5b"), Injection())
    for other in (
        Injection(strength=0.4),
        Injection(mode="queries-keys"),
        Injection(mode="image-queries-keys"),
        Injection(tokens="image"),
        Injection(tokens="own-text"),
        Injection(recentering=0.5),
        Injection(layers=(1, 2)),
    ):
        found, _ = both(load("5b"), other)
        assert not torch.allclose(found[:4], usual[:4], atol=1e-4)


class Count:
    """Rows that go through the parts of each block."""

    def __init__(self, transformer):
        self.rows = {}
        self._handles = []
        for number, block in enumerate(transformer.transformer_blocks):
            for name in ("to_q", "to_k", "to_v"):
                self._watch(getattr(block.attn1, name), (number, name))
            self._watch(block.ff, (number, "ff"))

    def _watch(self, module, key):
        def hook(module, args, output):
            self.rows[key] = self.rows.get(key, 0) + len(args[0])

        self._handles.append(module.register_forward_hook(hook))

    def of(self, layer):
        return [self.rows.get((layer, name), 0) for name in ("to_q", "to_k", "to_v", "ff")]

    def close(self):
        for handle in self._handles:
            handle.remove()


@pytest.fixture
def count(load):
    counting = Count(load("5b"))
    yield counting
    counting.close()


@pytest.mark.parametrize("max_rows", [None, 1])
def test_a_reference_row_stops_after_the_last_layer_with_injection(load, count, max_rows):
    """One reference beside two edit rows, with injection in the first two of three layers."""
    references = references_of((2, 2), 3, Injection(layers=(0, 2)))
    with run_rows(load("5b"), TransformerSettings(max_rows=max_rows)):
        forward(load("5b"), 3, references)
    assert count.of(0) == [3, 3, 3, 3]
    assert count.of(1) == [2, 3, 3, 2]  # keys and values, nothing else
    assert count.of(2) == [2, 2, 2, 2]


def test_a_reference_that_is_asked_for_goes_to_the_end(load, count):
    references = references_of((2, 2), 3, Injection(layers=(0, 1)), velocity=True)
    with run_rows(load("5b")):
        forward(load("5b"), 3, references)
    assert [count.of(layer) for layer in range(3)] == [[3] * 4] * 3


@pytest.mark.parametrize("mode", ["queries-keys", "image-queries-keys"])
def test_queries_and_keys_are_what_the_other_modes_need(load, count, mode):
    injection = Injection(mode=mode, layers=(0, 1))
    with run_rows(load("5b")):
        forward(load("5b"), 2, references_of((1,), 2, injection))
    assert count.of(0) == [2, 2, 1, 1]


def test_a_call_leaves_nothing_to_the_next(load):
    """The plan of a call comes with it: a batch of another size may follow, and the same again."""
    transformer = load("5b")
    references = references_of(ATTENDING, 7, Injection())
    alone = forward(transformer, 2)
    with run_rows(transformer):
        first = forward(transformer, 7, references)
        assert torch.equal(forward(transformer, 2), alone)
        assert torch.equal(forward(transformer, 7, references), first)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_blocks_come_back_when_the_body_raises(load, error):
    transformer = load("5b")

    def interrupted():
        with run_rows(transformer):
            assert all("forward" in vars(block) for block in transformer.transformer_blocks)
            raise error

    with pytest.raises(error):
        interrupted()
    assert not any("forward" in vars(block) for block in transformer.transformer_blocks)


def test_what_does_not_nest(load):
    transformer = load("5b")
    before = forward(transformer, 2)
    with run_rows(transformer):
        with pytest.raises(UsageError, match="does not nest"), run_rows(transformer):
            pass
        assert torch.equal(forward(transformer, 2), before)
    with (
        written_out(transformer, (1,), Injection()),
        pytest.raises(UsageError, match=WrittenOut.__name__),
        run_rows(transformer),
    ):
        pass
    assert not any("forward" in vars(block) for block in transformer.transformer_blocks)


def test_hooks_around_a_block_meet_one_call_of_it(load):
    """What offloading a block at a time relies on."""
    from diffusers.hooks import HookRegistry, ModelHook

    calls = []

    class Hook(ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            calls.append("in")
            return args, kwargs

        def post_forward(self, module, output):
            calls.append("out")
            return output

    transformer = deepcopy(load("5b"))
    for block in transformer.transformer_blocks:
        HookRegistry.check_if_exists_or_initialize(block).register_hook(Hook(), "watch")
    found, expected = both(transformer, Injection(), settings=TransformerSettings(max_rows=1))
    assert calls == ["in", "out"] * 6
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.equal(forward(transformer, 2), forward(load("5b"), 2))


def test_group_offloading(load, tmp_path):
    """To the disk, which empties the weights of a block once it has run."""
    transformer = deepcopy(load("5b"))
    expected = forward(transformer, 3)
    transformer.enable_group_offload(
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        offload_to_disk_path=str(tmp_path),
    )
    with run_rows(transformer):
        assert torch.equal(forward(transformer, 3), expected)
        assert torch.equal(forward(transformer, 3), expected)
    assert len(list(tmp_path.iterdir())) > len(transformer.transformer_blocks)


def check_that_graphs_stay(transformer):
    """Where no row attends to a reference any more, or under another strength."""
    from torch._dynamo.utils import counters

    graphs = counters["stats"]["unique_graphs"]
    with torch._dynamo.config.patch(error_on_recompile=True):
        forward(transformer, 4)
        forward(transformer, 2)
    assert graphs == counters["stats"]["unique_graphs"] <= 4
    # What is merged by log-sum-exp takes one more, and then a strength of its own in every step
    # takes none.
    forward(transformer, 7, references_of(ATTENDING, 7, Injection(2.0)))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for strength in (1.9, 1.0, 0.1):
            forward(transformer, 7, references_of(ATTENDING, 7, Injection(strength)))


@pytest.mark.parametrize(
    ("weights", "compiler"),
    [
        (None, "eager"),
        ("fp8", "eager"),
        pytest.param("int8", "eager", marks=pytest.mark.slow),
        pytest.param("fp8", "inductor", marks=pytest.mark.slow),
    ],
)
def test_a_compiled_block_is_the_same_and_its_graphs_stay(
    load, monkeypatch, tmp_path, weights, compiler
):
    """No graph break; the end of the injection's or guidance's window needs no new graph."""
    from torch._dynamo.utils import counters
    from torch._inductor import config

    monkeypatch.setattr("cogedit.models.forward.COMPILER", compiler)
    # What was compiled for another processor, or ATEN_CPU_CAPABILITY, does not do for this one.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    # One row beside its reference has all code of more rows, but for their number.
    attending, num_rows = ((1,), 2) if compiler == "inductor" else (ATTENDING, 7)
    references = references_of(attending, num_rows, Injection())
    transformer = load("5b")
    if weights is not None:
        transformer = deepcopy(transformer)
        store_weights(transformer, weights)
    with run_rows(transformer):
        expected = forward(transformer, num_rows, references)
    torch._dynamo.reset()
    counters.clear()
    settings = TransformerSettings(compile=True)
    # No processes that each import torch; and no code that is tried for each kind of processor.
    quick = config.patch({"compile_threads": 1, "cpp.vec_isa_ok": False})
    with quick, run_rows(transformer, settings):
        found = forward(transformer, num_rows, references)
        if compiler == "eager":  # the graphs are the same ones, whatever compiles them
            check_that_graphs_stay(transformer)
    edits = len(attending)
    assert torch.allclose(found[:edits], expected[:edits], atol=1e-5)
    assert not counters["graph_break"]
    torch._dynamo.reset()


def test_one_row_is_compiled_once_for_all_layers(load, monkeypatch):
    """The first layer gets views of one tensor, whose strides are not those of the layers after."""
    from torch._dynamo.utils import counters

    monkeypatch.setattr("cogedit.models.forward.COMPILER", "eager")
    torch._dynamo.reset()
    counters.clear()
    with run_rows(load("5b"), TransformerSettings(compile=True)):
        found = forward(load("5b"), 1)
    assert counters["stats"]["unique_graphs"] == 2  # before attention and after
    assert torch.allclose(found, forward(load("5b"), 1), atol=1e-5)
    torch._dynamo.reset()


def test_a_machine_that_cannot_compile(load, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("there is no C++ compiler")

    monkeypatch.setattr("cogedit.models.forward.COMPILER", broken)
    torch._dynamo.reset()
    with (
        pytest.raises(UsageError, match=r"there is no C\+\+ compiler"),
        run_rows(load("5b"), TransformerSettings(compile=True)),
    ):
        forward(load("5b"), 1)
    assert not any("forward" in vars(block) for block in load("5b").transformer_blocks)
    torch._dynamo.reset()
