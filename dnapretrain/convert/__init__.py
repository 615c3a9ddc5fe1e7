"""Between native checkpoints and Hugging Face folders: tables of names and layouts, read in both directions."""
