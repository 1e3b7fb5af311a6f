"""The mathematics: tensors in, tensors out.

Nothing in this room reads a file, prints, shows progress, draws from a global random generator or
changes a tensor in place. A model is a function of a noisy sample and its noise level; a sampler is
a function of a model, a sample and a schedule.
"""
