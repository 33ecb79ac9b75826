"""Lossless serving of Mixture-of-Experts models that are larger than the device's memory."""

__version__ = "0.1.0"
