"""How tests set up an expert store and a decoder of their own."""

from __future__ import annotations

SLOTS = 8
FLAGS = ("--cache-slots", f"{SLOTS}:{SLOTS}:{SLOTS}", "--workers", "2")
