"""Attention, gating, experts from shared memory, and all policy: the service that clients talk to."""
