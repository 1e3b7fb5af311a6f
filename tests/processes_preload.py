"""What the server of `processes` imports once: the package, and the libraries that it uses late."""

import gc
import importlib
import pkgutil
import sys
from functools import cache

import pipelines  # noqa: F401
import processes  # noqa: F401
import torch
import typer.main
from diffusers import (  # noqa: F401
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXTransformer3DModel,
)
from transformers import AutoTokenizer, T5EncoderModel  # noqa: F401

import cogedit

torch.set_num_threads(1)
sys.modules["decord"] = None  # type: ignore[assignment]  # as in `conftest`
for module in pkgutil.walk_packages(cogedit.__path__, "cogedit."):
    if not module.name.startswith(("cogedit.lab", "cogedit.__main__")):
        importlib.import_module(module.name)
# Made once, and not by every command.
typer.main.get_command = cache(typer.main.get_command)
typer.main.get_command(cogedit.cli.app)
# Every command collects a few times: not what it has from here.
gc.collect()
gc.freeze()
