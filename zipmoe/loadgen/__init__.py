"""Load on running services: what is asked, when, of whom, and what the answers took."""
