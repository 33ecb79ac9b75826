"""Native kernels on byte planes: bf16 weights to SM and exponent bytes and back."""

from zipmoe.kernels.planes import backend, backends, merge_planes, split_planes

__all__ = ["backend", "backends", "merge_planes", "split_planes"]
