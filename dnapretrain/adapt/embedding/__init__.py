"""Hidden states of sequences, and what probes find in them."""
