"""What all tests share: the pool of ranks, a small shard, a tiny configuration."""

from __future__ import annotations

import atexit
import functools
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranks import RankPool

# Where transformers copies the code of folders to. Set before it is imported: a process can import from one place only.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="hf-modules-")
atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankPool]:
    """CPU ranks that live as long as the session."""
    pool = RankPool()
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def small_shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefix of a shard with three contigs of Markov-like bases, N runs and lower case: 30,000 bases."""
    from dnapretrain.data.shards.preprocess import preprocess

    folder = tmp_path_factory.mktemp("shard")
    rng = np.random.default_rng(7)
    unit = rng.choice(list("ACGT"), 60)
    records = []
    for name, length in (("chr1", 18_000), ("chr2", 9_000), ("chr3", 3_000)):
        bases = np.where(rng.random(length) < 0.7, np.resize(unit, length), rng.choice(list("ACGT"), length))
        bases[length // 3 : length // 3 + 40] = "N"
        bases[100] = "N"
        sequence = "".join(bases)
        sequence = sequence[: length // 2] + sequence[length // 2 :].lower()
        records.append(f">{name} a test contig\n{sequence}\n")
    (folder / "small.fa").write_text("".join(records))
    preprocess([folder / "small.fa"], folder / "small")
    return folder / "small"


@pytest.fixture
def tiny_config(small_shard: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Build a config tree: `tiny_config("run-name", **{"parallel.tp": 2})`; 4 layers, hidden 64, fp32, CPU.

    32 samples are evaluated, one pass of the pipeline's schedule: all 93 would take longer than five steps.
    """

    def build(name: str = "run", **overrides: Any) -> dict[str, Any]:
        tree: dict[str, Any] = {
            "data": {
                "train": [{"prefix": str(small_shard)}],
                "split": {"by": "contig", "valid_contigs": ["chr3"]},
                "sequence_length": 32,
                "reverse_complement": 0.5,
            },
            "tokenizer": {"kind": "nucleotide"},
            "model": {
                "num_layers": 4,
                "hidden_size": 64,
                "num_attention_heads": 4,
                "num_query_groups": 2,
                "ffn_hidden_size": 96,
                "init_method_std": 0.08,
                "transformer_impl": "torch",
            },
            "parallel": {},
            "optim": {"lr": 3e-3, "lr_warmup_steps": 2},
            "train": {
                "run_dir": str(tmp_path / name),
                "train_steps": 40,
                "micro_batch_size": 2,
                "global_batch_size": 8,
                "eval_samples": 32,
                "precision": "fp32",
                "device": "cpu",
            },
        }
        for key, value in overrides.items():
            section, _, leaf = key.partition(".")
            tree.setdefault(section, {})[leaf] = value
        return tree

    return build


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests go to the processes of `pytest -n 2` by file; all files that use several ranks of the pool, which are several processes
    themselves, to one of them: two pools at once on two cores take longer than one after the other. What takes long goes first, lest one
    process work on it when the other has nothing left to do."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "ranks" if SEVERAL_RANKS.search(text_of(file)) else file

        def _assign_work_unit(self, node: Any) -> None:
            for scope in self.workqueue:
                if scope == "ranks" or "pytest.mark.slow" in text_of(scope):
                    self.workqueue.move_to_end(scope, last=False)
                    break
            super()._assign_work_unit(node)

    @functools.cache
    def text_of(file: str) -> str:
        return (config.rootpath / file).read_text()

    return ByFile(config, log)


SEVERAL_RANKS = re.compile(r"ranks\.run\((?!1,)")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say aloud what was not tested for want of data or hardware."""
    skipped = terminalreporter.stats.get("skipped", [])
    without_data = sum("DNAPRETRAIN_TEST_DATA" in str(report.longrepr) for report in skipped)
    if without_data:
        terminalreporter.write_line(f"{without_data} tests skipped: DNAPRETRAIN_TEST_DATA is not set (real genomes, see README)")
    if len(skipped) > without_data:
        terminalreporter.write_line(f"{len(skipped) - without_data} tests skipped for other reasons, GPU tests among them (make gpu-check)")


os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads only wait for each other
sys.path.insert(0, str(Path(__file__).parent))  # the ranks are spawned and import their work by name
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
