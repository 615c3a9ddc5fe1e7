"""What users do with a pretrained model, on its Hugging Face folder."""
