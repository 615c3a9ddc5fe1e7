"""Held-out loss in bits per base, and the count models to compare it with."""
