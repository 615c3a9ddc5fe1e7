"""What the chaos scripts share: a tiny run that saves and evaluates often, and what must hold of it whatever befell it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from dnapretrain.convert.native import file_digest, find_checkpoint, open_weights, read_state  # noqa: E402

SAVE_INTERVAL = 4
EVAL_INTERVAL = SAVE_INTERVAL // 2


def patience(seconds: float) -> float:
    """How long to wait for an end before it is a hang, from what a whole undisturbed run took: the machine may be busy."""
    return max(300.0, 30 * seconds)


def make_config(folder: Path, run: Path, steps: int, keep_last: int = 2, tensor_ranks: int = 1) -> Path:
    """A shard of random bases and the settings of a tiny run in `run`."""
    from dnapretrain.data.shards.preprocess import preprocess

    rng = np.random.default_rng(3)
    records = [f">{name}\n{''.join(rng.choice(list('ACGT'), length))}\n" for name, length in (("chr1", 20_000), ("chr2", 2_000))]
    (folder / "small.fa").write_text("".join(records))
    preprocess([folder / "small.fa"], folder / "small", overwrite=True)
    tree = {
        "data": {"train": str(folder / "small"), "sequence_length": 32, "split": {"by": "contig", "valid_contigs": ["chr2"]}},
        "model": {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "ffn_hidden_size": 64, "transformer_impl": "torch"},
        "parallel": {"tensor_model_parallel_size": tensor_ranks},
        "optim": {"lr": 1e-3},
        "train": {
            **{"run_dir": str(run), "train_steps": steps, "micro_batch_size": 2, "global_batch_size": 4},
            **{"precision": "fp32", "device": "cpu", "eval_interval": EVAL_INTERVAL, "eval_samples": 8},
        },
        "checkpoint": {"save_interval": SAVE_INTERVAL, "keep_last": keep_last},
        "log": {"log_interval": 1000},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def log_records(run: Path) -> list[dict[str, Any]]:
    path = run / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def losses_of(run: Path) -> dict[int, float]:
    """Loss by step of a run that was never disturbed."""
    return {record["step"]: record["loss"] for record in log_records(run) if record["kind"] == "train"}


def torn_files(checkpoint: Path) -> list[str]:
    """The files of a checkpoint that are not as its state.json says."""
    entries = read_state(checkpoint)["files"].items()
    paths = [(checkpoint / "weights" / name, entry) for name, entry in entries]
    return [str(path) for path, entry in paths if not path.is_file() or file_digest(path) != entry]


def same_end(run: Path, whole: Path) -> bool:
    """Whether two finished runs have the same weights and moments, bit for bit."""
    ours, theirs = (open_weights(find_checkpoint(folder)) for folder in (run, whole))
    return ours.names() == theirs.names() and all(ours.read(name).equal(theirs.read(name)) for name in ours.names())
