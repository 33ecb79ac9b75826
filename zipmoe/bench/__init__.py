"""Measures codecs and linear kernels on this machine, beside reference implementations in the same run.

    timed_threads, rounds   wall and processor time; interleaved rounds
    matrix, synthetic, stored_matrices   matrices: generated, or from a store or checkpoint
    codec_selection, native_zstd         the codecs to measure, and the reference zstd
    trial, codec_rounds     jobs of a codec; figures of `bench codec`
    bandwidth               read bandwidth of memory
    large_pages             memory in large pages, as arenas have
    linear_matrices, linear_trial, linear_rounds   matrices in every form; functions to time; figures of `bench ffn`
    machine, plot           description of the machine; a PNG of codec figures

`zipmoe.cli.benching` calls this room. Only the three `linear_` modules import torch.
"""
