"""Pretrained models as they are asked: folders or checkpoints to logits, hidden states and attention."""
