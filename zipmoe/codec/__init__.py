"""Lossless compression of exponent planes: exponents to E-chunks, and E-chunks back to exponents or bf16 weights.

In reading order:

    base             contract of a codec: compress, decompress, recover
    registry         codecs by name, and the default codec
    raw              no compression, the simplest codec
    cascade          2-bit codes, the default with SIMD
    huffman          Huffman codes, the default without SIMD
    zstd             standard zstd frames, entropy coding only
    zstd_frame       outline check of a zstd frame
    lz4hc            LZ4 blocks, for comparison
    cascade_twin     readable twin of the cascade kernels
    huffman_twin     readable twin of the Huffman kernels
    planes_twin      readable twin of the plane kernels

`zipmoe/store` compresses with these codecs; the decoder's workers recover with them. Calibration and the benches
measure them. Only tests import the twins.

A new codec is a `Codec` with a new name, an entry in `registry` and a row in the table of `zipmoe/store/FORMAT.md`. A
native codec also gets a line in `kCodecs` (`tests/fuzz/codecs.cpp`) and in `CODECS` (`tests/fuzz/target.py`). Computing
straight from the chunks works for `cascade` alone: see `computes_packed` in `zipmoe/planning/memory_split.py`.
"""
