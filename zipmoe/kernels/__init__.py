"""Native kernels on byte planes: bf16 weights to SM and exponent bytes and back."""
