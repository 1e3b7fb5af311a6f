"""Watches what code under test keeps in memory."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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
