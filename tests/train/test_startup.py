"""Where the time of a start goes: parts add up, and the slowest rank of each is known."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import training


def fit(env, store, tree):
    """Train to the end; rank 1 is slow before its first step."""
    trainer, _, _ = training.begin(env, store, tree)
    if env.rank == 1:
        time.sleep(0.7)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        trainer.fit()
    trainer.log.close()
    return printed.getvalue()


def test_a_start_is_logged_once(ranks, tiny_config):
    tree = tiny_config("run", **{"train.stop_at_step": 2})
    said = ranks.run(2, fit, tree=tree)[0]
    records = [json.loads(line) for line in (Path(tree["train"]["run_dir"]) / "log.jsonl").read_text().splitlines()]
    [record] = [record for record in records if record["kind"] == "startup"]
    assert list(record["seconds"]) == ["imports", "run folder", "model", "optimizer", "checkpoint", "first step"]
    assert record["step"] == 1 and abs(record["total"] - sum(record["seconds"].values())) < 1e-6
    assert all(record["slowest"][part] >= seconds for part, seconds in record["seconds"].items())
    assert record["slowest"]["run folder"] >= 0.7
    [line] = [line for line in said.splitlines() if "start-up:" in line]
    assert "from launch to the end of the first step: imports " in line


def test_a_process_knows_how_long_ago_it_was_launched():
    code = "import time; time.sleep(0.5); from dnapretrain.train.startup import seconds_since_launch as age; print(age())"
    began = time.monotonic()
    age = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 0.45 < age < time.monotonic() - began + 0.05
