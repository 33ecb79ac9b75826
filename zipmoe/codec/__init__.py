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
"""
