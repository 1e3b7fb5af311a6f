"""CogVideoX itself: the only importer of diffusers and transformers.

`checkpoint` and `geometry` know a model by its files, without torch; the other modules load it.
"""
