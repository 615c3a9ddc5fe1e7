"""Corpora by name: from a manifest of accessions to shards, with a lock."""
