"""dnapretrain: from FASTA files to a DNA language model trained with Megatron-core, and out to Hugging Face."""

__version__ = "0.1.0"
