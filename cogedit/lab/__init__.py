"""Training of the embedded model (`train`, `evaluate`) and benchmarks (`speed`, `quality`).

The wheel leaves this package out: it needs a checkout.
"""
