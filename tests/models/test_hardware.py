"""Which GPU torch would find, asked of NVIDIA's driver and of torch's build."""

import pytest
import torch

from cogedit.models import hardware
from cogedit.models.hardware import Driver, cuda_of_torch, num_cuda_devices, unused_gpus
from cogedit.stages.model import device_type
from cogedit.stages.settings import model_of_machine
from cogedit.tools import doctor


@pytest.mark.parametrize(
    ("driver", "built_for", "found", "said"),
    [
        (None, 13, 0, None),
        (None, None, 0, None),
        (Driver(0, 13), None, 0, None),
        (Driver(2, 13), 13, 2, None),
        (Driver(2, 13), 12, 2, None),
        (Driver(2, 12), 13, 0, "built for CUDA 13 and the driver knows CUDA 12"),
        (Driver(1, 12), None, 0, "built without CUDA"),
    ],
)
def test_a_gpu_is_there_if_driver_and_torch_agree(monkeypatch, driver, built_for, found, said):
    """Else nobody is told that CogVideoX-5B runs on a GPU, and computes on the CPU."""
    monkeypatch.setattr(hardware, "nvidia_driver", lambda: driver)
    monkeypatch.setattr(hardware, "cuda_of_torch", lambda: built_for)
    assert num_cuda_devices() == found
    assert (device_type("auto") == "cuda") == (found > 0)
    assert (model_of_machine() == "shapes") == (found == 0)
    problems = {
        device: [one.problem for one in doctor.check_devices([], device) if one.problem]
        for device in ("auto", "cpu")
    }
    assert problems["cpu"] == []
    if said is None:
        assert unused_gpus() is None
        assert problems["auto"] == []
    else:
        assert said in unused_gpus().message
        assert "install a torch for CUDA 12" in unused_gpus().hint
        assert said in problems["auto"][0]


def test_what_torch_says_of_its_build():
    built_for = torch.version.cuda
    assert cuda_of_torch() == (None if built_for is None else int(built_for.partition(".")[0]))


@pytest.mark.gpu
def test_the_devices_are_those_of_torch():
    assert num_cuda_devices() == torch.cuda.device_count() > 0
    assert unused_gpus() is None
