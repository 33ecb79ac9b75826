"""Native kernels in C++, called through ctypes: byte planes, exponent codecs, linears and attention on the CPU.

Read in this order:

    library           finds and loads the shared library
    backends          chooses the backend of the kernels
    planes            splits bf16 weights into SM and exponent planes
    exponent_kernels  decompresses and recovers chunks of either codec below
    cascade           codec of 2-bit codes: compress, decompress, recover bf16
    huffman           Huffman codec: compress, decompress, recover bf16
    linear            linears with torch's summation orders, from bf16 or cascade chunks
    linear_buffers    checks the buffers of a linear
    memory_form       contract of compressed forms in memory: size, conversion to and from it, linears. Dense weights
                      may have one (`zipmoe.model.build.dense_forms`); experts have none yet
    tile              tile form, for AVX-512 and the order `pairs`
    nibble            nibble form, for the order `lanes`
    attention         attention of single query rows over KV pages
    program           operations of a recorded pass
    native/           the C++ sources, one folder for each algorithm; `pool` has the threads

Called by `zipmoe.codec`, `zipmoe.store.pack`, `zipmoe.model` (linear, attention, program), `zipmoe.bench`,
`zipmoe.calibration`, `zipmoe.cli.benching` and `zipmoe.doctor`.
"""
