"""Benchmarks: how good the edits are (`quality`), measured on the shapes world."""
