"""Recovers bf16 tensors from chunks into the tensor arena."""
