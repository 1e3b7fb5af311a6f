"""CogVideoX itself: the only importer of diffusers and transformers.

`checkpoint`, `weights` and `geometry` know a model by its files, without torch; the others load it.
"""
