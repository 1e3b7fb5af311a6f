"""The embedded model's world, training (`train`, `evaluate`), demo and benchmarks.

`world` renders clips whose every edit has a right answer; `oracle` reads from pixels what a clip
shows. `speed` and `quality` print the benchmark tables. The wheel leaves this package out: it needs
a checkout.
"""
