"""What every rank of the tests needs, imported once: ranks are forked from a process that has this module (ranks.py)."""

from __future__ import annotations

import gc

import torch

import dnapretrain.train.run

__all__ = ["dnapretrain"]

torch.set_num_threads(1)
gc.collect()
gc.freeze()  # what the ranks share is not written to, and so not copied, by their collectors
