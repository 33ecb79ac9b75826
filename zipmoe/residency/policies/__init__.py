"""Policies of eviction."""
