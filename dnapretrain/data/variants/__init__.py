"""Phased variants, and shards of the haplotypes that they make."""
