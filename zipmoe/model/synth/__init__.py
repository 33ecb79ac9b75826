"""Synthetic hub checkpoints of every supported family, for tests, demonstrations and measurements."""

from zipmoe.model.synth.writer import SynthProgress, SynthSummary, synthesise

__all__ = ["SynthProgress", "SynthSummary", "synthesise"]
