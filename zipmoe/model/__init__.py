"""The model: what is in a checkpoint, and transformers' own code with its routed experts left out."""
