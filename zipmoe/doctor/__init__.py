"""Finds out what this machine lacks to serve well, and says what to do about it."""
