"""This system beside what people would use instead: the same tokens, in cgroups of the same size, in turn.

See `python -m benchmarks.peers --help`.
"""
