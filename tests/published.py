"""Published configurations, as arguments of their classes."""

from cogedit.lab.published import MODELS

COGVIDEOX_5B, VAE = (
    {name: value for name, value in config.items() if not name.startswith("_")}
    for config in (MODELS["5b"].transformer, MODELS["5b"].vae)
)
