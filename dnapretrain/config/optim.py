"""Section optim."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dnapretrain.config.section import Section


class OptimConfig(Section):
    """AdamW and its schedule. Weight decay skips norms and biases."""

    lr: float = Field(gt=0)
    min_lr: float = Field(0.0, ge=0)
    lr_decay_style: Literal["constant", "linear", "cosine", "inverse-square-root", "WSD"] = "cosine"
    lr_warmup_steps: int = Field(0, ge=0)
    lr_warmup_init: float = Field(0.0, ge=0)
    """Learning rate at step 0 of the warm-up."""
    lr_decay_steps: int | None = Field(None, gt=0)
    """Step at which the decay ends; default: train.train_steps."""
    lr_wsd_decay_steps: int | None = Field(None, gt=0)
    """Length of WSD's final decay in steps; default: a tenth of the decay steps."""
    lr_wsd_decay_style: Literal["linear", "cosine", "exponential", "minus_sqrt"] = "linear"
    weight_decay: float = Field(0.1, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.95, ge=0, lt=1)
    adam_eps: float = Field(1e-8, gt=0)
    clip_grad: float = Field(1.0, ge=0)
    """Largest global gradient norm; 0 turns clipping off."""
