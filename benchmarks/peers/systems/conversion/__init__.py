"""Tables that turn a hub checkpoint into the tensors and the metadata that llama.cpp wants.

Read `architecture` first: it says how a table is written. `changes` holds the rearrangements that a table may name.
Each other module is the table of one architecture, and `architectures` finds the table of a configuration. Caller:
`benchmarks.peers.systems.gguf_file`, which writes the file.
"""
