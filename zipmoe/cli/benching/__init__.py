"""benching."""
