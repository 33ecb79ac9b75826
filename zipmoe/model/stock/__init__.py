"""Uses the parts of transformers that are private, or may change from one release to the next; one module a part.

    model_class      the class and configuration of the text model of a checkpoint; construction on the meta device
    towers           the parts of a multimodal model that read images and sound, which text never reaches
    experts_module   the modules of routed experts and transformers' flags on them
    body             the module that holds the layers
    caches           the cache of a request, as `generate` makes it

`zipmoe.model.checkpoint`, `zipmoe.model.build`, `zipmoe.model.experts` and `zipmoe.model.passes` call this room.
"""
