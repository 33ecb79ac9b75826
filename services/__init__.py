"""The processes that an operator runs."""
