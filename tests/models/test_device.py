"""Names of devices and number formats, and the sentence for a full device."""

import weakref

import pytest
import torch

from cogedit.errors import DeviceMemoryError, UsageError
from cogedit.models.device import DTYPES, memory_guard, resolve_device

HAS_CUDA = torch.cuda.is_available()


def test_dtypes():
    assert {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32} == DTYPES


def test_cpu():
    assert resolve_device("cpu") == torch.device("cpu")


def test_auto_is_something_that_computes():
    device = resolve_device("auto")
    assert float(torch.ones(2, device=device).sum()) == 2
    assert (device.type == "cuda") == HAS_CUDA


@pytest.mark.parametrize("name", ["gpu", "", "cuda:", "cuda:x", "cuda:-1", "CPU!"])
def test_what_is_no_device(name):
    with pytest.raises(UsageError) as caught:
        resolve_device(name)
    assert caught.value.exit_code == 2
    assert "cuda:N" in caught.value.message


@pytest.mark.parametrize("name", ["meta", "xla", "hpu"])
def test_a_device_that_is_not_supported(name):
    with pytest.raises(UsageError, match=f"device {name} "):
        resolve_device(name)


def test_a_cuda_device_that_is_not_there():
    with pytest.raises(UsageError, match="cuda:99"):
        resolve_device("cuda:99")


@pytest.mark.skipif(HAS_CUDA, reason="this machine has one")
def test_no_cuda_device_at_all():
    with pytest.raises(UsageError, match="device cuda ") as caught:
        resolve_device("cuda")
    assert caught.value.hint is not None


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has one")
def test_no_mps_device():
    with pytest.raises(UsageError, match="device mps "):
        resolve_device("mps")


def run_out(error):
    with memory_guard("inverting"):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("GET was unable to find an engine to execute this computation"),  # of cuDNN
        RuntimeError("Invalid buffer size: 24.00 GiB"),  # of MPS
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9663676416 by"),
        MemoryError(),
    ],
)
def test_a_full_device_is_one_sentence(error):
    with pytest.raises(DeviceMemoryError) as caught:
        run_out(error)
    assert caught.value.exit_code == 6
    assert "inverting" in caught.value.message
    assert "--offload" in caught.value.hint
    assert "tiling" not in caught.value.hint
    order = ["--offload group", "--weights int8", "--max-num-frames", "last resort", "--width"]
    assert order == sorted(order, key=caught.value.hint.index)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        OSError("The paging file is too small for this operation to complete. (os error 1455)"),
        OSError(22, "Die Auslagerungsdatei ist zu klein. (os error 1455)"),
        RuntimeError("[WinError 1455] The paging file is too small. Error loading a dll"),
    ],
)
def test_a_small_paging_file_is_named(error):
    with pytest.raises(DeviceMemoryError, match="paging file is too small") as caught:
        run_out(error)
    assert caught.value.exit_code == 6
    assert "enlarge it" in caught.value.hint


def test_what_the_failed_calls_hold_goes_before_the_error_does():
    """Whoever handles it and tries again in another way needs the memory."""
    held = []

    def forward():
        rows = torch.zeros(3)
        held.append(weakref.ref(rows))
        raise torch.OutOfMemoryError("CUDA out of memory")

    def held_by_then():
        try:
            with memory_guard("editing"):
                forward()
        except DeviceMemoryError:
            return held[0]()
        return "no error"

    assert held_by_then() is None


def allocate(num_bytes):
    with memory_guard("encoding"):
        return torch.empty(num_bytes, dtype=torch.uint8)


def test_the_cpu_is_a_device_too():
    with pytest.raises(DeviceMemoryError, match="encoding"):
        allocate(2**55)


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), ValueError("not enough memory"), OSError(2, "no")]
)
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as caught:
        run_out(error)
    assert caught.value is error
