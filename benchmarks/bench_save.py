"""What a checkpoint costs: how long training stands still, and how long until it is there, waited for and in the background.

python benchmarks/bench_save.py --hidden 512 --layers 8
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def begin(folder: Path, hidden: int, layers: int, device: str) -> Any:
    """A trainer of a decoder on this one rank, over random bases."""
    from dnapretrain.config_file import config_from_dict
    from dnapretrain.data.sampling.run_data import open_data
    from dnapretrain.data.shards.preprocess import preprocess
    from dnapretrain.parallel import platform
    from dnapretrain.parallel.groups import start_groups
    from dnapretrain.train.run import build_trainer

    (folder / "bases.fa").write_text(">chr1\n" + "".join(np.random.default_rng(1).choice(list("ACGT"), 200_000)) + "\n")
    preprocess([folder / "bases.fa"], folder / "shard")
    tree = {
        "data": {"train": str(folder / "shard"), "sequence_length": 64},
        "model": {"num_layers": layers, "hidden_size": hidden, "num_attention_heads": 8, "ffn_hidden_size": 3 * hidden},
        "optim": {"lr": 1e-4},
        "train": {
            **{"run_dir": str(folder / "run"), "train_steps": 1000, "micro_batch_size": 2, "global_batch_size": 2},
            **{"precision": "fp32" if device == "cpu" else "bf16", "device": device},
        },
    }
    config = config_from_dict(tree)
    place = platform.start(device)
    start_groups(place, config.parallel, 1)
    return build_trainer(config, place, open_data(config))


def step(trainer: Any) -> float:
    """Seconds of one training step."""
    started = time.perf_counter()
    trainer.train_step(trainer.next_batches())
    trainer.saver.advance()
    return time.perf_counter() - started


def main() -> None:
    """Print one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        trainer = begin(Path(name), arguments.hidden, arguments.layers, arguments.device)
        saver = trainer.saver
        for _ in range(3):
            step(trainer)
        plain = [step(trainer) for _ in range(10)]
        waited, stalls, totals, slowed = [], [], [], []
        for _ in range(arguments.rounds):
            started = time.perf_counter()
            saver.save(trainer.position)
            waited.append(time.perf_counter() - started)
            step(trainer)
            started = time.perf_counter()
            saver.begin(trainer.position)
            while saver._writing is not None:
                slowed.append(step(trainer))
            stalls.append(saver._waited)
            totals.append(time.perf_counter() - started)
            step(trainer)
        size = sum(path.stat().st_size for path in saver._final.rglob("*"))
    median = statistics.median
    print(f"checkpoint of {size / 1e6:,.0f} MB, {arguments.device}, median of {arguments.rounds}; step {median(plain) * 1e3:,.0f} ms")
    print(f"waited for: training stands still for {median(waited):.3f} s")
    print(
        f"in the background: stands still for {median(stalls):.3f} s, whole after {median(totals):.3f} s; "
        f"a step meanwhile {median(slowed) * 1e3:,.0f} ms"
    )


if __name__ == "__main__":
    main()
