"""Speed of a training step: Megatron-core with the torch spec, with Transformer Engine, and `transformers` in plain PyTorch.

Prints rows for BENCHMARKS.md. All contestants have the same shape, batch and data, live in one process and
take their steps in turns, in the other order every other time; the ratio is the median over turns of the ratio of
the two steps of a turn, which a machine that is busy for a while disturbs little. In bf16 ours has bf16 weights with
fp32 main weights and gradients, `transformers` fp32 weights under bf16 autocast: both keep weights, gradients' sums
and Adam's moments in fp32 and multiply matrices in bf16. On CUDA bf16 is measured, on CPU fp32 and bf16.

    python benchmarks/bench_train.py --device cpu
    python benchmarks/bench_train.py --device cuda --size 1.2b
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform as host
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NUM_BASES = 4_000_000
SEED = 1234


@dataclass(frozen=True)
class Size:
    """A decoder's shape and the batch it is measured with."""

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    ffn_hidden_size: int
    sequence_length: int
    micro_batch_size: int
    global_batch_size: int

    @property
    def label(self) -> str:
        """The shape in words."""
        return (
            f"{self.num_layers} layers, hidden {self.hidden_size}, {self.num_attention_heads} heads, {self.num_query_groups} groups, "
            f"ffn {self.ffn_hidden_size}, 6-mers, {self.global_batch_size} x {self.sequence_length} tokens per step "
            f"in micro-batches of {self.micro_batch_size}"
        )


SIZES = {
    "tiny": Size(2, 64, 4, 2, 192, 64, 2, 4),
    "small": Size(4, 256, 4, 2, 768, 512, 4, 4),
    "120m": Size(16, 768, 12, 12, 2048, 4096, 8, 16),
    "1.2b": Size(26, 2048, 32, 4, 5632, 4096, 2, 8),  # the published GENERator shape
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--size", choices=SIZES, help="default: 120m on cuda, small on cpu")
    parser.add_argument("--precision", help="comma-separated, of fp32, bf16; default: bf16 on cuda, both on cpu")
    parser.add_argument("--contestants", default="torch,te,transformers", help="comma-separated, of torch, te, transformers")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each contestant (default 20)")
    parser.add_argument("--warm-up", type=int, default=5, help="steps before those (default 5)")
    arguments = parser.parse_args()
    size = SIZES[arguments.size or ("120m" if arguments.device == "cuda" else "small")]
    precisions = arguments.precision or ("bf16" if arguments.device == "cuda" else "fp32,bf16")
    failed = 0
    for precision in precisions.split(","):
        with tempfile.TemporaryDirectory(prefix="bench_train_") as folder:
            failed |= bench(arguments, size, Path(folder), precision)
    return failed


def bench(arguments: argparse.Namespace, size: Size, folder: Path, precision: str) -> int:
    """Build, warm up and time the contestants; print one row for each and one for each ratio. Returns 1 if any failed."""
    from dnapretrain.config import ParallelConfig
    from dnapretrain.model.counts import FLOPS_FORMULA
    from dnapretrain.parallel import platform as platforms
    from dnapretrain.parallel.groups import start_groups, stop_groups

    platform = platforms.start(arguments.device)
    write_shard(folder)
    start_groups(platform, ParallelConfig(), SEED)
    try:
        contestants, failed = prepare(arguments, size, folder, platform, precision)
        seconds, peaks = measure(contestants, arguments.steps, platform.is_cuda)
        for name, contestant in contestants.items():
            memory = f", peak memory {(peaks[name] - contestant.others_bytes) / 2**30:.1f} GiB" if platform.is_cuda else ""
            value = rates(seconds[name], size, arguments.device) + memory
            if isinstance(contestant, Ours):
                value += f", {100 * contestant.seconds_waited / sum(seconds[name]):.3f} % of it waiting for data"
            print(row(f"training step, {TITLES[name]}, {precision}, {contestant.num_weights / 1e6:,.1f} M weights, {size.label}", value))
        for name in ("te", "transformers"):
            if name in seconds and "torch" in seconds:
                ratios = [theirs / ours for theirs, ours in zip(seconds[name], seconds["torch"], strict=True)]
                low, ratio, high = statistics.quantiles(ratios, n=4)
                what = f"step time of {TITLES[name]} over that of {TITLES['torch']}"
                print(
                    row(
                        f"{what}, {precision}, {size.label}",
                        f"{ratio:.3f}, quartiles {low:.3f}-{high:.3f} of {len(ratios)} turns (above 1: ours is faster)",
                    )
                )
    finally:
        stop_groups()
    print(f"TFLOP/s: {FLOPS_FORMULA}")
    return 1 if failed else 0


TITLES = {
    "torch": "dnapretrain with the torch spec",
    "te": "dnapretrain with Transformer Engine",
    "transformers": "transformers LlamaForCausalLM with SDPA",
}


class Contestant:
    """A model, its optimizer and its data; `step` is one optimizer step on one global batch."""

    num_weights = 0
    others_bytes = 0
    """Device memory that the other contestants hold while this one steps."""

    def step(self) -> float:
        """Take one step; return the loss in nats per token."""
        raise NotImplementedError


class Ours(Contestant):
    """Our trainer with one layer spec."""

    def __init__(self, size: Size, folder: Path, platform: Any, transformer_impl: str, precision: str) -> None:
        from dnapretrain.model.build import named_weights
        from dnapretrain.train.run import build_trainer, open_data

        config = run_config(size, folder, platform.device.type, transformer_impl, precision)
        self.trainer = build_trainer(config, platform, open_data(config))
        chunks = [unwrapped(chunk) for chunk in self.trainer.chunks]
        self.num_weights = sum(weight.numel() for _, weight in named_weights(chunks))

    def step(self) -> float:
        """One `Trainer.train_step`."""
        return self.trainer.train_step(self.trainer.next_batches()).loss

    @property
    def seconds_waited(self) -> float:
        """For data, since the last call of `forget`."""
        return sum(prefetch.seconds_waited for prefetch in self.trainer.prefetch if prefetch)

    def forget(self) -> None:
        """Count what was waited for from here on."""
        for prefetch in self.trainer.prefetch:
            if prefetch:
                prefetch.seconds_waited = 0.0


class Transformers(Contestant):
    """The same shape as `LlamaForCausalLM`, trained by a plain PyTorch loop: fused AdamW, clipping, autocast in bf16."""

    def __init__(self, size: Size, folder: Path, platform: Any, precision: str) -> None:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        from dnapretrain.config import padded_vocab_size
        from dnapretrain.train.run import open_data

        self.size, self.device, self.next_sample, self.is_bf16 = size, platform.device, 0, precision == "bf16"
        self.config = run_config(size, folder, platform.device.type, "torch", precision)
        data = open_data(self.config)
        self.stream = data.train
        shape = LlamaConfig(
            vocab_size=padded_vocab_size(data.tokenizer.vocab_size),
            hidden_size=size.hidden_size,
            intermediate_size=size.ffn_hidden_size,
            num_hidden_layers=size.num_layers,
            num_attention_heads=size.num_attention_heads,
            num_key_value_heads=size.num_query_groups,
            max_position_embeddings=size.sequence_length,
            tie_word_embeddings=False,
            use_cache=False,
            attn_implementation="sdpa",
        )
        torch.manual_seed(SEED)
        self.model = LlamaForCausalLM(shape).to(self.device).train()
        self.num_weights = sum(weight.numel() for weight in self.model.parameters())
        optim = self.config.optim
        betas = (optim.adam_beta1, optim.adam_beta2)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), optim.lr, betas, optim.adam_eps, optim.weight_decay, fused=True)

    def step(self) -> float:
        """Gradients of all micro-batches, divided by the number of targets as ours are, then one update."""
        import numpy as np
        import torch
        import torch.nn.functional as F

        from dnapretrain.model.batches import BatchPlace

        first, size = self.next_sample, self.size
        self.next_sample += size.global_batch_size
        place = BatchPlace(size.micro_batch_size, 0, 1, self.device, (True,), self.stream.tokenizer.pad_id, bidirectional=False)
        batches = [
            place.take(self.stream.batch(np.arange(start, start + size.micro_batch_size, dtype=np.int64)))
            for start in range(first, self.next_sample, size.micro_batch_size)
        ]
        num_targets = torch.stack([batch.loss_mask_BS.sum() for batch in batches]).sum()
        total = torch.zeros((), device=self.device)
        self.optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            with torch.autocast(self.device.type, torch.bfloat16) if self.is_bf16 else nullcontext():
                logits_BSV = self.model(batch.tokens_BS).logits
            losses = F.cross_entropy(logits_BSV.float().flatten(0, 1), batch.labels_BS.flatten(), reduction="none")
            loss = (losses * batch.loss_mask_BS.flatten()).sum() / num_targets
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip_grad)
        self.optimizer.step()
        return float(total)


def prepare(
    arguments: argparse.Namespace, size: Size, folder: Path, platform: Any, precision: str
) -> tuple[dict[str, Contestant], list[str]]:
    """The contestants that could be built and warmed up, and the names of those that failed (each is reported)."""
    import torch

    builders: dict[str, Callable[[], Contestant]] = {
        "torch": lambda: Ours(size, folder, platform, "torch", precision),
        "te": lambda: Ours(size, folder, platform, "transformer_engine", precision),
        "transformers": lambda: Transformers(size, folder, platform, precision),
    }
    contestants: dict[str, Contestant] = {}
    held: dict[str, int] = {}
    failed: list[str] = []
    for name in arguments.contestants.split(","):
        if name == "te" and (reason := no_transformer_engine(platform.is_cuda)):
            print(f"{TITLES[name]}: skipped: {reason}")
            continue
        before = torch.cuda.memory_allocated() if platform.is_cuda else 0
        try:
            contestant = builders[name]()
            losses = [contestant.step() for _ in range(arguments.warm_up)]
            contestants[name] = contestant
        except Exception as error:  # one contestant must not cost the others' numbers
            failed.append(name)
            reason = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            print(row(f"training step, {TITLES[name]}, {size.label}", reason))
            continue
        held[name] = (torch.cuda.memory_allocated() if platform.is_cuda else 0) - before
        print(f"{TITLES[name]}: {contestant.num_weights:,} weights, losses of the warm-up {', '.join(f'{loss:.3f}' for loss in losses)}")
    for name, contestant in contestants.items():
        contestant.others_bytes = sum(amount for other, amount in held.items() if other != name)
    return contestants, failed


def measure(contestants: dict[str, Contestant], steps: int, is_cuda: bool) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of each step and highest memory in bytes, by contestant; they take turns."""
    import torch

    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    peaks = dict.fromkeys(contestants, 0)
    for contestant in contestants.values():
        if isinstance(contestant, Ours):
            contestant.forget()
    for turn in range(steps):
        for name, contestant in list(contestants.items())[:: -1 if turn % 2 else 1]:
            if is_cuda:
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            started = time.perf_counter()
            contestant.step()
            if is_cuda:
                torch.cuda.synchronize()
                peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated())
            seconds[name].append(time.perf_counter() - started)
    return seconds, peaks


def rates(seconds: list[float], size: Size, device: str) -> str:
    """Median step time with its range, tokens/s, TFLOP/s and the share of the GPU's peak."""
    import torch

    from dnapretrain.config import ModelConfig, TokenizerConfig
    from dnapretrain.data.tokens.tokenizers import build_tokenizer
    from dnapretrain.model.counts import flops_per_token
    from dnapretrain.parallel.gpus import gpu_by_device_name

    median = statistics.median(seconds)
    tokens = size.global_batch_size * size.sequence_length
    vocab_size = build_tokenizer(TokenizerConfig(**TOKENIZER)).vocab_size
    flops = tokens * flops_per_token(ModelConfig(**model_section(size, "torch")), size.sequence_length, vocab_size) / median
    gpu = gpu_by_device_name(torch.cuda.get_device_name()) if device == "cuda" else None
    share = f" ({100 * flops / gpu.bf16_tflops / 1e12:.1f} % of the {gpu.bf16_tflops:.0f} TFLOP/s dense bf16 peak)" if gpu else ""
    return (
        f"{median * 1e3:,.1f} ms per step (median of {len(seconds)}, {min(seconds) * 1e3:,.1f}-{max(seconds) * 1e3:,.1f}), "
        f"{tokens / median:,.0f} tokens/s, {flops / 1e12:,.3f} TFLOP/s{share}"
    )


TOKENIZER = {"kind": "kmer", "k": 6, "base_order": "ATCG"}


def model_section(size: Size, transformer_impl: str) -> dict[str, Any]:
    names = ("num_layers", "hidden_size", "num_attention_heads", "num_query_groups", "ffn_hidden_size")
    return {**{name: getattr(size, name) for name in names}, "transformer_impl": transformer_impl}


def run_config(size: Size, folder: Path, device: str, transformer_impl: str, precision: str) -> Any:
    from dnapretrain.config_file import config_from_dict

    return config_from_dict(
        {
            "data": {"train": str(folder / "random"), "sequence_length": size.sequence_length},
            "tokenizer": TOKENIZER,
            "model": model_section(size, transformer_impl),
            "optim": {"lr": 1e-4, "lr_decay_style": "constant"},
            "train": {
                "run_dir": str(folder / f"{transformer_impl}_{precision}"),
                "train_steps": 1_000_000,
                "micro_batch_size": size.micro_batch_size,
                "global_batch_size": size.global_batch_size,
                "precision": precision,
                "device": device,
                "seed": SEED,
            },
        }
    )


def write_shard(folder: Path) -> None:
    """Random bases, through `preprocess` as any genome."""
    import numpy as np

    from dnapretrain.data.shards.preprocess import preprocess

    bases = np.frombuffer(b"ACGT", np.uint8)[np.random.default_rng(0).integers(0, 4, NUM_BASES)]
    (folder / "random.fa").write_bytes(b">random\n" + bases.tobytes() + b"\n")
    preprocess([folder / "random.fa"], folder / "random")


def unwrapped(chunk: Any) -> Any:
    while hasattr(chunk, "module"):
        chunk = chunk.module
    return chunk


def no_transformer_engine(is_cuda: bool) -> str:
    """Why Transformer Engine cannot be measured here; empty when it can."""
    if not is_cuda:
        return "no CUDA"
    from megatron.core.models.gpt.gpt_layer_specs import HAVE_TE

    return "" if HAVE_TE else "transformer_engine cannot be imported"


def row(what: str, value: str, command: str | None = None) -> str:
    """One line of BENCHMARKS.md: | date | what | value | hardware | commit | command |."""
    command = command or f"python {shlex.join([os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]])}"
    return f"| {datetime.date.today()} | {what} | {value} | {hardware('--device cpu' not in command)} | {commit()} | `{command}` |"


def hardware(use_gpu: bool) -> str:
    """The processor as a person would say it, with the versions of Python and torch."""
    import torch

    versions = f"Python {host.python_version().rpartition('.')[0]}, torch {'.'.join(torch.__version__.split('.')[:2])}"
    if use_gpu and torch.cuda.is_available():
        return f"one {torch.cuda.get_device_name().removeprefix('NVIDIA ')}, {versions}"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), host.machine())
    return f"{torch.get_num_threads()} threads of {model}, {versions}"


def commit() -> str:
    """Of this clone; DNAPRETRAIN_COMMIT says it where only the files have been brought, without git's folder."""
    if given := os.environ.get("DNAPRETRAIN_COMMIT"):
        return given
    if shutil.which("git") is None:
        return "no git"
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "no git"


if __name__ == "__main__":
    sys.exit(main())
