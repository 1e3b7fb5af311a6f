"""What the server of `processes` imports once."""

import torch  # isort: skip  (before decord)
import decord  # noqa: F401
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel  # noqa: F401
from transformers import AutoTokenizer, T5EncoderModel  # noqa: F401

import cogedit.cli
import cogedit.media.reader
import cogedit.media.writer
import cogedit.models.auto_mask
import cogedit.models.loading
import cogedit.models.sampling
import cogedit.models.vae  # noqa: F401

torch.set_num_threads(1)
