"""Reads SM-chunks and E-chunks from disk into the chunk arena."""
