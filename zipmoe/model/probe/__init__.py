"""Finds out by computing how requests of a model can share the work, with stock's bits.

comparison   a checkpoint's model by each of our paths, beside stock's `generate`
"""
