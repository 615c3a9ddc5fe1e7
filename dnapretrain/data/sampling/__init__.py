"""Shards to training samples: splits, blends, windows, batches."""
