"""The systems that are compared, and all that each needs.

`system` lists them and starts them: ours through `services`, all others as a process of their own through `worker`.
`torch_worker` is the process of those that compute with torch, `torch_model` their models. `llama_build` builds
llama.cpp and its driver (`llama/`); `gguf_file` writes its checkpoint, by the tables in `conversion`.
"""
