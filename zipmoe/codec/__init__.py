"""Lossless compression of exponent planes: the contract, its implementations and their registry."""
