"""What one step reports, the formula behind TFLOP/s, and the run's log."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dnapretrain.config import ModelConfig, padded_vocab_size

FLOPS_FORMULA = (
    "per token 6 x (matrix weights of layers and head, not the embedding) + 6 x layers x sequence x heads x head width "
    "(causal: half the square); recomputation not counted"
)


@dataclass(frozen=True)
class StepReport:
    """One optimizer step, the same on every rank."""

    step: int
    loss: float
    """Nats per target token, weighted by the loss mask."""
    bits_per_base: float
    grad_norm: float
    lr: float
    num_tokens: int
    """Target tokens (loss weight above 0) in the global batch."""
    updated: bool
    """False when the update was left out because loss or gradient were not finite."""
    seconds: float


def bits_per_base(loss: float, bases_per_token: int) -> float:
    """`loss` in nats per token as bits per base: log2(e) x loss / bases per token; uniform over bases reads 2."""
    return loss * math.log2(math.e) / bases_per_token


def flops_per_token(model: ModelConfig, sequence_length: int, vocab_size: int) -> float:
    """Floating-point operations of training per token, by FLOPS_FORMULA."""
    width = model.num_attention_heads * model.head_dim
    qkv = model.hidden_size * (width + 2 * model.query_groups * model.head_dim)
    layer = qkv + width * model.hidden_size + 3 * model.hidden_size * model.ffn_hidden_size
    weights = model.num_layers * layer + model.hidden_size * padded_vocab_size(vocab_size)
    return 6.0 * weights + 6.0 * model.num_layers * sequence_length * width


class RunLog:
    """Console lines and `log.jsonl`, one JSON object per line; silent on ranks that do not write."""

    def __init__(self, run_dir: Path, is_main: bool) -> None:
        self.is_main = is_main
        self.path = run_dir / "log.jsonl"
        if is_main:
            run_dir.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a")

    def write(self, kind: str, **fields: Any) -> None:
        """Append one record; it is in the file when this returns."""
        if self.is_main:
            self._file.write(json.dumps({"kind": kind, **fields}) + "\n")
            self._file.flush()

    def say(self, text: str) -> None:
        """Print one line."""
        if self.is_main:
            print(text, flush=True)

    def step(self, report: StepReport, consumed_samples: int, totals: dict[str, Any], show: bool, total_steps: int) -> None:
        """Record a step; print it when `show`."""
        self.write("train", **asdict(report), consumed_samples=consumed_samples, **totals)
        if show:
            skipped = "" if report.updated else " | UPDATE SKIPPED: gradient not finite, or no base with a weight"
            self.say(
                f"step {report.step:>6}/{total_steps} | samples {consumed_samples:>9,} | loss {report.loss:.4f} | "
                f"bits/base {report.bits_per_base:.4f} | lr {report.lr:.2e} | grad norm {report.grad_norm:.3f} | "
                f"{report.seconds * 1e3:,.0f} ms | {totals['tokens_per_second']:,.0f} tokens/s | "
                f"{totals['tflops']:.3f} TFLOP/s per rank{skipped}"
            )

    def evaluation(self, name: str, step: int, consumed_tokens: int, result: dict[str, Any], seconds: float) -> None:
        """Record and print the loss on one held-out set."""
        self.write("eval", set=name, step=step, consumed_tokens=consumed_tokens, **result, seconds=seconds)
        self.say(
            f"eval {name} at step {step} | loss {result['loss']:.4f} | bits/base {result['bits_per_base']:.4f} | "
            f"{result['num_tokens']:,} tokens of {result['num_samples']:,} samples | {seconds:.1f} s"
        )

    def close(self) -> None:
        """Flush to disk and close."""
        if self.is_main:
            os.fsync(self._file.fileno())
            self._file.close()
