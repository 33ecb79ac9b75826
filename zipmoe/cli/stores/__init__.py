"""Verbs over stores and checkpoints: pack, verify, inspect and synth.

    pack             `zipmoe pack`: packs a checkpoint into a store
    store_progress   converts progress reports for the progress bar
    verify           `zipmoe verify`: checks checksums, compares with the checkpoint
    inspect          `zipmoe inspect`: describes a store from its manifest
    synth            `zipmoe synth`: writes a checkpoint with random weights

The work itself is in `zipmoe.store` and `zipmoe.model.synth`. `zipmoe.cli.__main__` registers the verbs;
`zipmoe.cli.showing.demo` packs with `pack_options` and `run_pack`.
"""
