"""Shared memory of one device: sealed arenas, their hand-over between processes, and the leases on their slots."""
