"""Watches what code under test keeps in memory."""

import weakref
from collections import deque

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_FLOATS = torch.float32, torch.float64


class FloatClips(TorchDispatchMode):
    """Lists the operations that make float32 or float64 of all pixels of a clip, or of its mask.

    The VAE's own dtype is no matter where it is bf16.
    """

    def __init__(self, num_frames, height, width):
        super().__init__()
        self._sizes = [sorted([num_frames, height, width]), sorted([num_frames, height, width, 3])]
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if not isinstance(leaf, torch.Tensor) or leaf.dtype not in _FLOATS:
                continue
            if sorted(side for side in leaf.shape if side != 1) in self._sizes:
                self.found.append(str(func))
        return result


DEVICE = torch.device("meta")
"""Where the tensors of a `Device` say that they are."""


class _There(torch.Tensor):
    """A tensor on a pretended device; its values are in `here`, a tensor of the CPU."""

    here: torch.Tensor

    @staticmethod
    def __new__(cls, here):
        size, strides = here.size(), here.stride()
        there = torch.Tensor._make_wrapper_subclass(
            cls, size, strides, here.storage_offset(), dtype=here.dtype, device=DEVICE
        )
        there.here = here
        return there

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[override]
        raise AssertionError(f"{func} outside of its device")


class Device(TorchDispatchMode):
    """Pretends that there is a device beside the CPU, and counts what lies on each of them.

    Operations on its tensors run on the CPU. `peak` and `host_peak` are the most bytes that the
    tensors of the device and those of the CPU took at once, of the tensors made meanwhile.
    """

    def __init__(self):
        super().__init__()
        self._there, self._host = weakref.WeakSet(), []
        self.peak = self.host_peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        target = kwargs.get("device")
        on_device = any(isinstance(leaf, _There) for leaf in given)
        if target is not None:
            on_device = torch.device(target).type == DEVICE.type
            kwargs["device"] = torch.device("cpu")
        here = tree_map(
            lambda leaf: leaf.here if isinstance(leaf, _There) else leaf, (args, kwargs)
        )
        result = func(*here[0], **here[1])
        name = str(func).split(".")[1]  # of "aten.copy_.default"
        if target is not None and given and not name.endswith("_like"):
            result = result.clone()  # another device is another memory
        if name.endswith("_"):  # in place
            return args[0]
        return tree_map(lambda leaf: self._hold(leaf, on_device), result)

    def _hold(self, leaf, on_device):
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if on_device:
            leaf = _There(leaf)
            self._there.add(leaf)
        else:
            self._host.append(weakref.ref(leaf))
        self._host = [ref for ref in self._host if ref() is not None]
        self.peak = max(self.peak, _bytes(one.here for one in self._there))
        self.host_peak = max(self.host_peak, _bytes(ref() for ref in self._host))
        return leaf


def _bytes(tensors):
    storages = [tensor.untyped_storage() for tensor in tensors if tensor is not None]
    return sum({one.data_ptr(): one.nbytes() for one in storages}.values())


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made in its body and alive; meta tensors count too.

    Kernels of convolutions copy their input to a layout of their own: cuDNN and oneDNN both do.

    Attributes:
        peak: The most there were at once.
        limit: With more than this at once torch's own error is raised, as a device would.
    """

    def __init__(self, limit=None):
        super().__init__()
        self.peak, self.limit = 0, limit
        self._now, self._known, self._freed = 0, {}, deque()

    @property
    def now(self):
        """How many there are."""
        # Another thread may free what it had last, between any two operations of this one.
        while self._freed:
            self._now -= self._known.pop(self._freed.popleft(), 0)
        return self._now

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if not isinstance(leaf, torch.Tensor):
                continue
            storage = leaf.untyped_storage()
            key, before = storage._cdata, self.now
            if key not in self._known:
                self._known[key] = storage.nbytes()
                weakref.finalize(storage, self._freed.append, key)
                self._now = before + storage.nbytes()
                copied = args[0].nbytes if func is torch.ops.aten.convolution.default else 0
                self.peak = max(self.peak, self._now + copied)
                if self.limit is not None and self._now > self.limit:
                    raise torch.OutOfMemoryError(
                        f"out of memory: {self._now} of {self.limit} bytes"
                    )
        return result
