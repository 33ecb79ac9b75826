"""Measures what this machine takes for reads, recoveries and FFNs, and remembers it: the costs that plans rest on."""
