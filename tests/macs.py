"""The GPU of a Mac, played by the CPU: what runs on it for a test, and what it refuses."""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map_only

MPS = torch.device("mps")
REFUSED = {torch.float64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2}

_MOVES = {torch.Tensor.cpu, torch.Tensor.to}
_ACROSS = {
    torch.Tensor.to,
    torch.Tensor.copy_,
    torch.Tensor.__getitem__,
    torch.Tensor.__setitem__,
}
"""What may be called with tensors of both devices."""


class OnMac(torch.Tensor):
    """A tensor in host memory that says it is on a Mac's GPU, and so do the results of it."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            return call(function, args, kwargs or {})


class Mac(TorchFunctionMode):
    """Have a Mac's GPU in the body of this context, for tensors and modules."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            return call(function, args, kwargs or {})


def call(function, args, kwargs):
    """Call a function of torch, and place its result where a Mac would."""
    leaves = tree_flatten((args, kwargs))[0]
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    is_here = [isinstance(tensor, OnMac) for tensor in tensors]
    if function == torch.Tensor.device.__get__:
        return MPS if is_here[0] else torch.device("cpu")
    if function is torch.Tensor.numpy and is_here[0]:
        raise TypeError("a tensor on mps has no numpy array")
    if function is torch._has_compatible_shallow_copy_type:
        return is_here[0] == is_here[1]
    sized = [here for tensor, here in zip(tensors, is_here, strict=True) if tensor.dim()]
    if function not in _ACROSS and len(set(sized)) > 1:
        raise RuntimeError(f"{function} got tensors on mps and on the cpu")
    devices = [torch.device(leaf) for leaf in leaves if _is_device(leaf)]
    to_mac = any(is_here[: 1 if function in _ACROSS else None]) and function is not torch.Tensor.cpu
    if function is torch.Tensor.to and len(tensors) > 1:
        to_mac = is_here[1]
    if devices and function is not torch._C._nn._parse_to:
        to_mac = devices[0].type == "mps"
        args, kwargs = tree_map_only(
            (str, torch.device), lambda x: "cpu" if _is_device(x) else x, (args, kwargs)
        )
    result = function(*args, **kwargs)
    return tree_map_only(torch.Tensor, lambda x: _placed(x, to_mac, function), result)


def _is_device(leaf):
    return isinstance(leaf, torch.device) or (isinstance(leaf, str) and leaf in ("mps", "cpu"))


def _placed(tensor, to_mac, function):
    if to_mac and tensor.dtype in REFUSED:
        raise TypeError(f"{function} makes {tensor.dtype}, which a tensor on mps cannot be")
    if isinstance(tensor, OnMac) == to_mac:
        return tensor
    copy = tensor.clone() if function in _MOVES else tensor
    return copy.as_subclass(OnMac if to_mac else torch.Tensor)
