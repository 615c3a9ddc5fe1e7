"""What grows with the ranks: building groups, reading batches, starting, saving. On CPU ranks where it is honest, played beyond them.

python benchmarks/bench_scaling.py --parts groups loader plan
python benchmarks/bench_scaling.py --parts runs --ranks 1 2 4

`groups`, `loader` and `plan` are CPU-seconds of one process that plays ranks one after the other. `runs` starts real CPU ranks: more of
them than cores say what order the parts of a start stand in, not how long they take elsewhere.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
WORLDS = (64, 256, 1024, 4096)
READERS = (1, 2, 4, 8, 16)


def tree(folder: Path, name: str, **train: Any) -> dict[str, Any]:
    """Settings of a tiny decoder."""
    return {
        "data": {"train": str(folder / "shard"), "sequence_length": 1024},
        "model": {"num_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "ffn_hidden_size": 704},
        "optim": {"lr": 1e-4},
        "train": {
            "run_dir": str(folder / name),
            "train_steps": 3,
            "micro_batch_size": 2,
            "global_batch_size": 32,
            "device": "cpu",
            **train,
        },
    }


def groups() -> None:
    """CPU-seconds that one rank takes to build all groups of a job of tensor 8 x pipeline 4."""
    from dnapretrain.config import ParallelConfig
    from dnapretrain.parallel.group_census import count_groups
    from dnapretrain.parallel.groups import pretend_rank

    layout = ParallelConfig(tensor_model_parallel_size=8, pipeline_model_parallel_size=4)
    with pretend_rank(0, 32, layout):  # imports
        pass
    for world in WORLDS:
        started = time.process_time()
        with count_groups() as built, pretend_rank(world // 2, world, layout):
            seconds = time.process_time() - started
        own = sum(world // 2 in group.ranks and len(group.ranks) > 1 for group in built)
        print(f"groups  {world:>5} ranks: {len(built):>6,} groups, {own} of them of this rank and others, {seconds:.3f} CPU-s")


def loader(folder: Path) -> None:
    """Samples per CPU-second of one reader, where the work is that of many: a rank reads no slower for others being there."""
    from dnapretrain.config_file import config_from_dict
    from dnapretrain.data.sampling.run_data import open_data

    steps, batch = 8, 32
    config = config_from_dict(tree(folder, "loader"))
    for readers in READERS:
        started = time.process_time()
        streams = [open_data(config).train for _ in range(readers)]
        opening = (time.process_time() - started) / readers
        rates = []
        for rank, stream in enumerate(streams):  # each with 32 samples per step: weak scaling
            started = time.process_time()
            for step in range(steps):
                first = (step * readers + rank) * batch
                stream.batch(np.arange(first, first + batch))
            rates.append(steps * batch / (time.process_time() - started))
        print(
            f"loader  {readers:>5} readers: {np.median(rates):,.0f} samples of 1,024 tokens per CPU-s each (slowest {min(rates):,.0f}), "
            f"opened in {opening * 1e3:.1f} CPU-ms each"
        )


def plan() -> None:
    """Who writes a checkpoint of AIDO.DNA's 7 billion weights, on paper."""
    from dnapretrain.config_file import load_config
    from dnapretrain.data.tokens.tokenizers import countable_tokenizer
    from dnapretrain.train.save_plan import save_plan

    settings = ["parallel.tp=8", "parallel.sequence_parallel=false", "train.micro_batch_size=1", "train.global_batch_size=1024"]
    config = load_config(Path("aido-dna-7b"), settings)
    for world in (8, 64, 256, 1024):
        found = save_plan(config, countable_tokenizer(config.tokenizer), world)
        written = found.bytes_of_ranks()
        alone = found.total_bytes / 8
        most = max(written.values())
        print(
            f"plan    {world:>5} ranks: {found.total_bytes / 1e9:,.1f} GB, {len(written):,} writers of at most {most / 1e6:,.0f} MB; "
            f"by data-parallel rank 0 alone about {alone / 1e6:,.0f} MB each; shares reckoned in {found.share_seconds:.3f} s"
        )


def runs(folder: Path, ranks: list[int]) -> None:
    """Real data-parallel runs of three steps: the parts of the start, and the time of a checkpoint."""
    for count in ranks:
        path = folder / f"runs-{count}.yaml"
        path.write_text(yaml.safe_dump(tree(folder, f"run-{count}")))
        command = [sys.executable, "-m", "dnapretrain", "pretrain", str(path), "--ranks", str(count), "log.console=quiet"]
        subprocess.run(command, check=True, cwd=ROOT)
        records = {record["kind"]: record for record in map(json.loads, (folder / f"run-{count}" / "log.jsonl").read_text().splitlines())}
        start, saved = records["startup"], records["checkpoint"]
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in start["slowest"].items())
        print(
            f"runs    {count:>5} ranks: start {start['total']:.1f} s (slowest rank of each part: {parts}); checkpoint "
            f"{saved['bytes'] / 1e6:.1f} MB in {saved['seconds']:.2f} s, training waited {saved['stall_seconds']:.2f} s",
            flush=True,
        )


def main() -> None:
    """Print rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("groups", "loader", "plan", "runs"), default=["groups", "loader", "plan", "runs"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4, 8], help="of `runs` (default 1 2 4 8)")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if {"loader", "runs"} & set(arguments.parts):
            from dnapretrain.data.shards.preprocess import preprocess

            (folder / "bases.fa").write_text(">chr1\n" + "".join(np.random.default_rng(1).choice(list("ACGT"), 4_000_000)) + "\n")
            preprocess([folder / "bases.fa"], folder / "shard")
        if "groups" in arguments.parts:
            groups()
        if "loader" in arguments.parts:
            loader(folder)
        if "plan" in arguments.parts:
            plan()
        if "runs" in arguments.parts:
            runs(folder, arguments.ranks)


if __name__ == "__main__":
    main()
