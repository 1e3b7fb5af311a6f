"""Tensors read and written slice by slice: the same bytes, and never more than a slice of them."""

import os

import pytest
import torch

from cogedit.artifacts import Pieces, read_artifact, write_artifact
from cogedit.errors import ArtifactDamaged


def in_pieces(tensor):
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Pieces(dtype, tuple(tensor.shape), lambda: iter(tensor))


@pytest.mark.parametrize("kind", ["frames", "trajectory", "edit"])
def test_pieces_make_the_same_file(chain, tmp_path, kind):
    whole, pieces = tmp_path / "whole.safetensors", tmp_path / "pieces.safetensors"
    written = write_artifact(whole, chain.tensors[kind], chain.records[kind])
    tensors = {name: in_pieces(tensor) for name, tensor in chain.tensors[kind].items()}
    assert write_artifact(pieces, tensors, chain.records[kind]) == written
    assert pieces.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("change", [lambda frames: frames[:-1], lambda frames: frames.float()])
def test_other_pieces_than_were_promised_leave_no_file(chain, tmp_path, change):
    frames = chain.tensors["frames"]["frames"]
    promised = Pieces("uint8", tuple(frames.shape), lambda: iter(change(frames)))
    with pytest.raises(ValueError, match="expected"):
        write_artifact(tmp_path / "a.safetensors", {"frames": promised}, chain.records["frames"])
    assert list(tmp_path.iterdir()) == []


def test_slices_are_those_of_the_tensor(chain):
    expected = chain.tensors["trajectory"]["trajectory"]
    slices = read_artifact(chain.paths["trajectory"]).tensors.slices("trajectory")
    assert slices.shape == expected.shape
    assert torch.equal(slices[-1], expected[-1])
    assert torch.equal(slices[1:3], expected[1:3])
    assert torch.equal(slices[2:2], expected[2:2])
    assert torch.equal(torch.stack(list(slices)), expected)
    with pytest.raises(IndexError):
        slices[len(expected)]


def test_a_file_that_takes_its_place_changes_nothing(chain, tmp_path):
    path = tmp_path / "frames.safetensors"
    frames = chain.tensors["frames"]["frames"]
    write_artifact(path, {"frames": frames}, chain.records["frames"])
    slices = read_artifact(path, "frames").tensors.slices("frames")
    write_artifact(path, {"frames": 255 - frames}, chain.records["frames"])
    assert torch.equal(slices[0], frames[0])


def test_a_file_that_is_cut_meanwhile_is_damaged(chain, tmp_path):
    path = tmp_path / "frames.safetensors"
    write_artifact(path, chain.tensors["frames"], chain.records["frames"])
    tensors = read_artifact(path, "frames").tensors
    os.truncate(path, path.stat().st_size - 1)
    assert torch.equal(tensors.slices("frames")[0], chain.tensors["frames"]["frames"][0])
    with pytest.raises(ArtifactDamaged, match=r"frames\.safetensors"):
        tensors["frames"]
