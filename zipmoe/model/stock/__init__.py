"""Uses the parts of transformers that are private, or may change from one release to the next; one module a part.

Private are names that begin with an underscore, and everything that the package `transformers` itself does not hand
out. Nothing outside this room uses them: `tests/properties/test_private_interfaces.py` walks the tree. The test of each
module says which behaviour of transformers the module relies on, so an upgrade fails there first.

    model_types           the Mixture-of-Experts model types
    model_class           the class and configuration of the text model of a checkpoint; construction on the meta device
    mtp                   the layers for multi-token prediction, which draft tokens
    towers                the parts of a multimodal model that read images and sound, which text never reaches
    conversion_tables     which checkpoint tensors make which parameters, and their conversion
    dtype_plan            the parameters that are not bfloat16 in a bfloat16 model
    initialisation        weights that stock draws; buffers that are in no checkpoint
    experts_module        the modules of routed experts and transformers' flags on them
    body                  the module that holds the layers, and other modules in their place
    computed_body         known hidden states in the place of the body or of an encoder's output
    attention_switch      a function of ours in the place of stock's eager attention
    caches                the cache of a request, as `generate` makes it, and the windows of its layers
    cache_sizes           the bytes of that cache, and the experts of a token
    generation_settings   the defaults and the logits processors of `generate`
    tensor_without_memory base of tensors whose operations are ours; private parts of torch

The other rooms of `zipmoe.model` call this room; so do `services/router` (generation_settings),
`zipmoe.cli.stores.pack` and `zipmoe.cli.showing.families`.
"""
