"""Tiny models of every Mixture-of-Experts model type of the installed transformers, with random weights.

Read in this order:

    twin             the tiny configuration of a type or of a real configuration, and its checkpoint
    sizes            sizes, by the names that configurations give them
    layers           the few layers that show each kind of layer
    exceptions       model types that the general rules do not fit
    random_weights   weights that keep activations alive

`zipmoe.model.probe` compares such checkpoints with stock; `zipmoe families` does so for every type.
"""
