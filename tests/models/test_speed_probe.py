"""How fast a device is, by a block and an attention of a model's width."""

import math

import pytest
import torch

from cogedit.lab.product import measure_product
from cogedit.models.cost import Flops, TransformerSizes
from cogedit.models.speed_probe import Speed, measure_speed

SIZES = TransformerSizes(
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=32,
    in_channels=4,
    out_channels=4,
    patch_size=2,
    patch_size_t=1,
    text_embed_dim=16,
    time_embed_dim=8,
    max_text_seq_length=12,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [8, 60])  # fewer than the text has, and more
def test_both_speeds_are_numbers(num_tokens, dtype):
    found = {"num_tokens": num_tokens, "device": torch.device("cpu"), "dtype": dtype}
    speed, product = measure_speed(SIZES, **found), measure_product(SIZES, **found)
    for rate in (speed.linear, speed.attention, product):
        assert math.isfinite(rate)
        assert rate > 1


def test_each_kind_of_operation_takes_its_own_time():
    assert Speed(linear=2.0, attention=4.0).seconds(Flops(linear=6.0, attention=4.0)) == 4.0
