"""What a run has read, and what its held-out sets share with it."""
