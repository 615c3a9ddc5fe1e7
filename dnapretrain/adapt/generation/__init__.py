"""Sequences that models write, and how they compare with natural ones."""
