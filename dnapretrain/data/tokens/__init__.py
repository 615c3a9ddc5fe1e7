"""Tokenizers: vocabularies, published ones and byte-pair encoding."""
