"""Shoal: train, adapt and serve language models with data parallelism, on the machines people have."""

__version__ = "0.1.0"
