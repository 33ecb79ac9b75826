"""Synthetic hub checkpoints of every supported family, for tests, demonstrations and measurements."""
