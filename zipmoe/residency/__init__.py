"""What stays in memory, what goes, what is read next: plain synchronous objects, no I/O, no clock, replayable."""
