"""From FASTA to batches: records, regions, shards, tokenizers, samples. Never imports torch or Megatron."""
