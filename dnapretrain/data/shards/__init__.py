"""Base shards: written once, read by everything else."""
