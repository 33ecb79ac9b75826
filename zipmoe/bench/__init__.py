"""Measures codecs and linear kernels on this machine, beside what they are compared with, in one run."""
