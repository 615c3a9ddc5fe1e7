"""Native checkpoints to Hugging Face folders and back, by one table of names per family."""
