"""Sequences and what is known of them: tables, genomes, targets, and rows divided so that they do not leak."""
