"""Injection: what rows attend to, against a softmax that is written out."""

import pytest
import torch
from references import attend_beside

from cogedit.errors import UsageError
from cogedit.models.attention import Heads, Injection, attend_rows, attend_with_reference, needs_lse
from cogedit.models.kernels import attention
from cogedit.types import ReconstructSettings

LENGTH = 3
"""Text tokens of a row."""


MODES = [
    *(("concatenate", w) for w in (0.5, 1.0, 2.0)),
    *((mode, w) for mode in ("queries-keys", "image-queries-keys") for w in (0.4, 1.0)),
]
"""Modes and strengths."""


def heads(seed, rows=2, tokens=7):
    generator = torch.Generator().manual_seed(seed)
    return Heads(*(torch.randn(rows, 3, tokens, 16, generator=generator) for _ in range(3)))


@pytest.mark.parametrize("strength", [3.0, 1.0, 0.9, 0.5, 0.01])
def test_merge_by_log_sum_exp_is_the_biased_softmax(strength):
    own, reference = heads(0), heads(1)
    merged = attend_with_reference(own, reference.k, reference.v, strength=strength)
    for row in range(2):
        expected = attend_beside(
            [x[row] for x in own], [x[row] for x in reference], Injection(strength), LENGTH
        )
        assert torch.allclose(merged[row], expected, atol=1e-5)


@pytest.mark.parametrize("targets", [(2, 0), (1, 1)])
@pytest.mark.parametrize(("mode", "strength"), MODES)
@pytest.mark.parametrize("tokens", ["all", "image", "own-text"])
@pytest.mark.parametrize("recentering", [0.0, 0.3, 1.0])
def test_rows_attend_to_themselves_and_to_their_references(
    targets, mode, strength, tokens, recentering
):
    own, references = heads(0), heads(1, rows=3)
    injection = Injection(strength, mode, tokens, recentering=recentering)
    attended = attend_rows(own, references, targets, injection=injection, text_length=LENGTH)
    for row, target in enumerate(targets):
        expected = attend_beside(
            [x[row] for x in own], [x[target] for x in references], injection, LENGTH
        )
        assert torch.allclose(attended[row], expected, atol=1e-5)


@pytest.mark.parametrize("strength", [0.5, 1.0, 4.0])
@pytest.mark.parametrize(("tokens", "keeps"), [("all", True), ("own-text", True), ("image", False)])
def test_a_row_beside_its_equal_attends_as_it_did(tokens, keeps, strength):
    own = heads(0)
    attended = attend_rows(
        own, own, (0, 1), injection=Injection(strength, tokens=tokens), text_length=LENGTH
    )
    assert torch.allclose(attended, attention(*own), atol=1e-5) == keeps


def beside_brighter(tokens, recentering):
    """What rows attend to beside references, and beside the same with all image values raised."""
    own, references = heads(0), heads(1)
    brighter = references.v.clone()
    brighter[:, :, LENGTH:] += 5.0
    injection = Injection(0.5, tokens=tokens, recentering=recentering)
    return [
        attend_rows(own, rows, (0, 1), injection=injection, text_length=LENGTH)
        for rows in (references, references._replace(v=brighter))
    ]


@pytest.mark.parametrize("tokens", ["all", "image", "own-text"])
def test_the_mean_of_a_reference_leaves_no_trace_where_values_move_all_the_way(tokens):
    assert torch.allclose(*beside_brighter(tokens, 1.0), atol=1e-5)
    assert not torch.allclose(*beside_brighter(tokens, 0.5), atol=0.1)


@pytest.mark.parametrize("strength", [0.5, 1.0, 4.0])
def test_the_values_of_an_equal_do_not_move(strength):
    own, injection = heads(0), Injection(strength, tokens="own-text", recentering=0.7)
    attended = attend_rows(own, own, (0, 1), injection=injection, text_length=LENGTH)
    assert torch.allclose(attended, attention(*own), atol=1e-5)


def replay(own, references, mode, strength=1.0):
    injection = Injection(strength, mode)
    return attend_rows(own, references, (0, 1), injection=injection, text_length=LENGTH)


def with_text(image, text):
    """The image tokens of one and the text tokens of the other."""
    pairs = zip(image, text, strict=True)
    return Heads(*(torch.cat([b[:, :, :LENGTH], a[:, :, LENGTH:]], dim=2) for a, b in pairs))


@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_the_image_of_a_reference_replaces_what_image_tokens_give_each_other(strength):
    """Against a dense softmax in float64."""
    own, reference = heads(0), heads(1)
    attended = replay(own, reference, "image-queries-keys", strength).double()
    (q, k, v), reference = (Heads(*(x.double() for x in row)) for row in (own, reference))
    plain = (q @ k.transpose(-1, -2) / 4).softmax(-1)
    assert torch.allclose(attended[:, :, :LENGTH], (plain @ v)[:, :, :LENGTH], atol=1e-5)
    words = q[:, :, LENGTH:] @ k[:, :, :LENGTH].transpose(-1, -2)
    places = reference.q[:, :, LENGTH:] @ reference.k[:, :, LENGTH:].transpose(-1, -2)
    guided = (torch.cat([words, places], dim=-1) / 4).softmax(-1)
    image = (1 - strength) * plain[:, :, LENGTH:] + strength * guided
    assert torch.allclose(attended[:, :, LENGTH:], image @ v, atol=1e-5)


@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_the_text_of_a_reference_has_no_say_where_its_image_alone_is_replayed(strength):
    own, reference = heads(0), heads(1)
    other = with_text(reference, heads(2))
    first, second = (replay(own, x, "image-queries-keys", strength) for x in (reference, other))
    assert torch.equal(first, second)
    first, second = (replay(own, x, "queries-keys", strength) for x in (reference, other))
    assert not torch.allclose(first, second, atol=1e-2)


@pytest.mark.parametrize("strength", [0.4, 1.0])
@pytest.mark.parametrize("mode", ["queries-keys", "image-queries-keys"])
def test_the_map_of_an_equal_row_is_ones_own(mode, strength):
    own = heads(0)
    reference = Heads(own.q, own.k, heads(1).v)
    assert torch.allclose(replay(own, reference, mode, strength), attention(*own), atol=1e-5)


@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_both_ways_to_replay_agree_where_only_image_keys_differ(strength):
    """Then image tokens attend by both with the same logits, and text tokens do not."""
    own = heads(0)
    reference = with_text(Heads(own.q, heads(1).k, own.v), own)
    whole, image = (
        replay(own, reference, m, strength) for m in ("queries-keys", "image-queries-keys")
    )
    assert torch.allclose(whole[:, :, LENGTH:], image[:, :, LENGTH:], atol=1e-5)
    assert not torch.allclose(whole, attention(*own), atol=1e-2)
    assert torch.allclose(image[:, :, :LENGTH], attention(*own)[:, :, :LENGTH], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({}, True),
        ({"injection_strength": 1.0}, False),
        ({"injection_strength": 0.0}, False),
        ({"injection_strength": 0.5}, True),
        ({"injection_strength": (1.0, 0.0)}, True),
        ({"injection_strength": (1.0, 0.0), "injection_mode": "queries-keys"}, False),
        ({"injection_strength": 1.0, "injection_mode": "image-queries-keys"}, True),
        ({"injection_strength": (1.0, 0.0), "injection_mode": "image-queries-keys"}, True),
        ({"injection_strength": 0.0, "injection_mode": "image-queries-keys"}, False),
    ],
)
def test_which_edits_need_a_kernel_with_a_log_sum_exp(changes, needed):
    assert needs_lse(ReconstructSettings("a fox", **changes)) == needed


def test_the_window_of_layers():
    assert Injection().window(3) == range(3)
    assert Injection(layers=(1, 2)).window(3) == range(1, 2)


@pytest.mark.parametrize("layers", [(0, 4), (2, 2), (3, None), (-1, 2)])
def test_a_window_without_layers_is_refused(layers):
    with pytest.raises(UsageError, match="this model has layers 0:3"):
        Injection(layers=layers).window(3)
