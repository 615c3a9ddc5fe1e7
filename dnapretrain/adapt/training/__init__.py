"""Pretrained models fitted to tasks, and what they predict."""
