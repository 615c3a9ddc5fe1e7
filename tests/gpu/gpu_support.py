"""What the GPU tests share. No pytest here, so that benchmarks/gpu_check.py can run them where it is missing.

DNAPRETRAIN_GPU_TEST_DEVICE=cpu runs the tests on the CPU: a rehearsal of the tests themselves, on machines without a GPU.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import SkipTest

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it starts; needed for bitwise repeatable sums

import numpy as np
import torch

from dnapretrain.config import RunConfig
from dnapretrain.config_file import config_from_dict, dump_config
from dnapretrain.data.shards.preprocess import preprocess

ROOT = Path(__file__).resolve().parents[2]
NUM_BASES = 60_000


def device() -> str:
    """The device under test. Raises SkipTest without a GPU, unless the rehearsal on the CPU is asked for."""
    wanted = os.environ.get("DNAPRETRAIN_GPU_TEST_DEVICE", "cuda")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise SkipTest("no CUDA device")
    return wanted


def need_transformer_engine() -> None:
    """Raises SkipTest where Transformer Engine cannot run."""
    if device() != "cuda":
        raise SkipTest("no CUDA device")
    from megatron.core.models.gpt.gpt_layer_specs import HAVE_TE

    if not HAVE_TE:
        raise SkipTest("transformer_engine cannot be imported")


@contextmanager
def workplace() -> Iterator[Path]:
    """A temporary folder with a shard `dna`: a motif of 64 bases over and over, one base in ten redrawn, so that it can be learnt."""
    with tempfile.TemporaryDirectory(prefix="gpu_test_") as name:
        folder, rng = Path(name), np.random.default_rng(0)
        bases = np.resize(rng.integers(0, 4, 64), NUM_BASES)
        redrawn = rng.random(NUM_BASES) < 0.1
        bases[redrawn] = rng.integers(0, 4, redrawn.sum())
        (folder / "dna.fa").write_bytes(b">motif\n" + np.frombuffer(b"ACGT", np.uint8)[bases].tobytes() + b"\n")
        preprocess([folder / "dna.fa"], folder / "dna")
        yield folder


def run_config(folder: Path, name: str, **overrides: Any) -> RunConfig:
    """A small decoder (head width 32, grouped queries) on `device`; `overrides` are section__key=value."""
    tree: dict[str, dict[str, Any]] = {
        "data": {
            "train": str(folder / "dna"),
            "sequence_length": 128,
            "split": {"by": "block", "block_size": 5_000, "valid_fraction": 0.2},
        },
        "tokenizer": {"kind": "nucleotide"},
        "model": {
            "num_layers": 2,
            "hidden_size": 128,
            "num_attention_heads": 4,
            "num_query_groups": 2,
            "ffn_hidden_size": 256,
            "transformer_impl": "torch",
        },
        "parallel": {},
        "optim": {"lr": 3e-3, "lr_decay_style": "constant", "lr_warmup_steps": 2},
        "train": {
            "run_dir": str(folder / name),
            "train_steps": 6,
            "micro_batch_size": 4,
            "global_batch_size": 8,
            "precision": "fp32",
            "device": device(),
            "eval_samples": 16,
        },
    }
    for key, value in overrides.items():
        section, _, leaf = key.partition("__")
        tree[section][leaf] = value
    return config_from_dict(tree)


def train(config: RunConfig) -> dict[str, torch.Tensor]:
    """Run `config` on one rank of this process (resuming where it has a checkpoint); return the weights on the CPU by canonical name."""
    from dnapretrain.train.run import pretrain

    return weights(pretrain(config).chunks)


@contextmanager
def groups(config: RunConfig) -> Iterator[Any]:
    """This process as a world of one rank; yields its platform."""
    from dnapretrain.parallel import platform as platforms
    from dnapretrain.parallel.groups import start_groups, stop_groups

    platform = platforms.start(config.train.device)
    start_groups(platform, config.parallel, config.train.seed)
    try:
        yield platform
    finally:
        stop_groups()


def weights(chunks: list[Any]) -> dict[str, torch.Tensor]:
    """Copies of the weights by canonical name."""
    from dnapretrain.model.build import named_weights

    return {name: weight.detach().cpu().clone() for name, weight in named_weights([unwrapped(chunk) for chunk in chunks])}


def first_batch(config: RunConfig, padded: bool = False) -> dict[str, Any]:
    """Weights, loss and gradients of a new model on its first micro-batch, of which `padded` cuts the first sample in half."""
    from dnapretrain.model.batches import BatchPlace
    from dnapretrain.model.build import build_chunks, named_weights
    from dnapretrain.model.loss import forward_step
    from dnapretrain.train.run import open_data

    data = open_data(config)
    with groups(config) as platform:
        chunks = build_chunks(config, data.tokenizer, platform)
        first = data.train.batch(np.arange(config.train.micro_batch_size, dtype=np.int64))
        if padded:
            half = first.tokens.shape[1] // 2
            first.tokens[0, half:] = first.labels[0, half:] = data.tokenizer.pad_id
            first.loss_mask[0, half:] = 0
        place = BatchPlace(
            len(first.tokens), 0, 1, platform.device, (True,), data.tokenizer.pad_id, bidirectional=config.model.kind == "encoder"
        )
        batch = place.take(first)
        output, loss_function = forward_step(iter([batch]), chunks[0])
        loss_sum, num_targets, _ = loss_function(output)
        (loss_sum / num_targets).backward()
        return {
            "loss": float(loss_sum / num_targets),
            "weights": weights(chunks),
            "gradients": {name: weight.grad.float().cpu() for name, weight in named_weights(chunks)},
        }


def unwrapped(chunk: Any) -> Any:
    """The decoder inside Megatron's wrappers."""
    while hasattr(chunk, "module"):
        chunk = chunk.module
    return chunk


def steps(config: RunConfig) -> list[dict[str, Any]]:
    """The logged steps of a run, in order."""
    records = [json.loads(line) for line in (config.train.run_dir / "log.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == "train"]


def losses(config: RunConfig) -> list[float]:
    """The logged loss of each step."""
    return [record["loss"] for record in steps(config)]


def train_on_cpu(config: RunConfig, folder: Path) -> RunConfig:
    """Run `config` on the CPU in a process of its own (a process is a CPU rank or a CUDA rank, never both); return its config."""
    run = config.model_copy(update={"train": config.train.model_copy(update={"device": "cpu", "run_dir": folder / "on_cpu"})})
    file = folder / "on_cpu.yaml"
    file.write_text(dump_config(run))
    command_line("pretrain", file)
    return run


def command_line(*arguments: object) -> str:
    """Output of `dnapretrain ARGUMENTS` in a new process; its stderr is in the error when it fails."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "dnapretrain", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"dnapretrain {' '.join(map(str, arguments))} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return done.stdout


@contextmanager
def deterministic() -> Iterator[None]:
    """Kernels that add in a fixed order: attention without atomic additions, torch's deterministic algorithms elsewhere."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def checkpoint_goes_on(first: dict[str, Any], second: dict[str, Any], what: str, bound: float, **settings: Any) -> None:
    """3 steps with the settings `first`, 3 with `second`, in bf16: the losses of 6 steps with `first`, within `bound`, relative."""
    settings = {"train__precision": "bf16", **settings}
    with workplace() as folder:
        whole = run_config(folder, "whole", **settings, **first)
        train(whole)
        train(run_config(folder, "parted", **settings, **first, train__stop_at_step=3))
        parted = run_config(folder, "parted", **settings, **second)
        train(parted)
        differences = [abs(a / b - 1) for a, b in zip(losses(parted), losses(whole), strict=True)]
    report(f"bf16 checkpoint of {what}", f"losses differ by {max(differences):.1e} (relative, largest)")
    assert all(map(math.isfinite, differences))
    assert max(differences) < bound


def relative(difference_from: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> float:
    """|a - b| / |b| over all tensors together, in fp64."""
    difference = sum((difference_from[name].double() - reference[name].double()).square().sum() for name in reference)
    return float((difference / sum(tensor.double().square().sum() for tensor in reference.values())) ** 0.5)


def report(what: str, value: str) -> None:
    """Hand a measured value to benchmarks/gpu_check.py, which makes a row for BENCHMARKS.md of it; alone, print it."""
    if file := os.environ.get("DNAPRETRAIN_GPU_RESULTS"):
        with Path(file).open("a") as results:
            results.write(f"{what} | {value}\n")
    else:
        print(f"\n{what} | {value}", flush=True)
