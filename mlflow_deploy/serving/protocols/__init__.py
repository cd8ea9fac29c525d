"""Protocols: each turns its requests into calls of the data plane and results into its answers."""
