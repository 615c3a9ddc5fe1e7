"""Annotation: genes on their assemblies, and shards of their regions."""
