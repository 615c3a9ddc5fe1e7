"""Records go to the console, TensorBoard and Weights & Biases as asked; a tracker that fails never stops the run."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
import training

from dnapretrain.config import LogConfig
from dnapretrain.errors import ConfigError
from dnapretrain.train import metrics
from dnapretrain.train.metrics import RunLog, StepReport
from dnapretrain.train.trackers import Trackers, check_trackers, scalars

EVAL = {
    **{"set": "valid", "step": 4, "loss": 1.3, "bits_per_base": 1.9, "marginal_bits_per_base": None, "accuracy": 0.4, "num_targets": 9},
    "regions": {"class": {"CDS": {"bits_per_base": 1.8, "num_bases": 5, "weight": 5.0}}},
}


def test_what_is_sent():
    assert dict(scalars("eval", EVAL)) == {"valid/loss": 1.3, "valid/bits_per_base": 1.9, "valid/accuracy": 0.4, "valid/class/CDS": 1.8}
    assert dict(scalars("train", {"step": 3, "loss": 1.0, "mfu": None, "updated": True, "lr": 0.1})) == {"train/loss": 1.0, "train/lr": 0.1}
    results = {"start_codon": {"share": 0.7, "control_share": None, "num_pairs": 9}}
    assert dict(scalars("probes", {"step": 3, "results": results})) == {"probes/start_codon/share": 0.7}


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (LogConfig(tensorboard=True), r"log\.tensorboard=true needs the package tensorboard.*pip install 'dnapretrain\[tensorboard\]'"),
        (LogConfig(wandb_project="dna"), r"log\.wandb_project needs the package wandb.*pip install 'dnapretrain\[wandb\]'"),
    ],
)
def test_a_missing_package_is_said_at_the_start(log, message, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=message):
        check_trackers(log)
    check_trackers(LogConfig())


class Writer:
    """What TensorBoard's writer and a run of W&B are asked to do."""

    def __init__(self, *arguments, **named):
        self.arguments, self.named, self.sent, self.closed = arguments, named, [], False

    def add_scalar(self, key, value, step):
        if key == "train/loss" and value < 0:
            raise OSError("disk full")
        self.sent.append((key, value, step))

    def log(self, values):
        self.sent.append(values)

    def define_metric(self, *arguments, **named):
        self.metric = arguments, named

    def close(self):
        if ("train/loss", 9.0, 1) in self.sent:
            raise TypeError("no such argument")
        self.closed = True

    finish = close


@pytest.fixture
def packages(monkeypatch):
    """Both packages as stand-ins that note what they are told."""
    made = {}

    def maker(name):
        return lambda *arguments, **named: made.setdefault(name, []).append(Writer(*arguments, **named)) or made[name][-1]

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=maker("tensorboard")))
    wandb = SimpleNamespace(init=maker("wandb"), Settings=lambda **settings: settings)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return made


def test_both_get_all_steps_and_a_resumed_run_goes_on(packages, tmp_path):
    log = LogConfig(tensorboard=True, wandb_project="dna", wandb_mode="offline")
    for first in (0, 3):
        trackers = Trackers(log, tmp_path)
        assert trackers.record("start", {"step": first, "config": {"data": 1}}) == ""
        assert trackers.record("train", {"step": first + 1, "loss": 1.0}) == ""
        assert trackers.record("eval", EVAL) == trackers.record("checkpoint", {"step": 4, "path": "x"}) == ""
        trackers.close()
    board, other = packages["tensorboard"], packages["wandb"]
    assert [writer.named["purge_step"] for writer in board] == [1, 4]
    assert board[1].sent[0] == ("train/loss", 1.0, 4) and ("valid/class/CDS", 1.8, 4) in board[1].sent
    assert other[0].named["id"] == other[1].named["id"] and other[0].named["mode"] == "offline"
    assert other[1].sent[0] == {"step": 4, "train/loss": 1.0}
    assert all(writer.closed for writer in (*board, *other))


def test_a_tracker_that_fails_gets_no_more_and_the_run_goes_on(packages, tmp_path, capsys):
    log = RunLog(tmp_path, True, False, LogConfig(tensorboard=True))
    log.write("start", step=0, config={})
    log.write("train", step=1, loss=-1.0)
    log.write("train", step=2, loss=1.0)
    log.close()
    assert "WARNING: TensorBoard gets no more of this run: OSError: disk full" in capsys.readouterr().out
    assert packages["tensorboard"][0].sent == []
    assert [json.loads(line)["kind"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == ["start", "train", "train"]


def test_one_that_cannot_be_closed_is_said(packages, tmp_path, capsys):
    log = RunLog(tmp_path, True, False, LogConfig(tensorboard=True))
    log.write("start", step=0, config={})
    log.write("train", step=1, loss=9.0)
    log.close()
    assert "WARNING: TensorBoard may lack the end of this run: TypeError" in capsys.readouterr().out


def report(step):
    return StepReport(step, 1.3, 1.9, 0.3, 0.5, 1e-3, 10, 10, 2, 8, True, "", 0.25)


@pytest.mark.parametrize("console", ["lines", "json", "quiet"])
def test_the_console(console, tmp_path, capsys, monkeypatch):
    clock = iter([100.0, 102.0, 104.0])
    monkeypatch.setattr(metrics.time, "monotonic", lambda: next(clock))
    log = RunLog(tmp_path, True, False, LogConfig(console=console))
    totals = {"mfu": 0.4, "tokens_per_second": 1e4, "tflops": 0.1}
    for step in (1, 2, 3):
        log.step(report(step), 2 * step, totals, step != 2, 3, "")
    log.close()
    printed = capsys.readouterr().out.splitlines()
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3
    if console == "json":
        assert [json.loads(line)["step"] for line in printed] == [1, 2, 3]
    else:
        assert len(printed) == {"lines": 2, "quiet": 0}[console]


def test_time_left_is_by_the_clock(tmp_path, capsys, monkeypatch):
    clock = iter([100.0, 102.0, 104.0])
    monkeypatch.setattr(metrics.time, "monotonic", lambda: next(clock))
    log = RunLog(tmp_path, True, False)
    for step in (1, 2, 3):
        log.step(report(step), 2 * step, {"mfu": None, "tokens_per_second": 1e4, "tflops": 0.1}, True, 100, "")
    first, second, third = capsys.readouterr().out.splitlines()
    assert "left" not in first and second.endswith("| 3 min 16 s left") and third.endswith("| 3 min 14 s left")


def begun(env, store, tree):
    trainer, _, _ = training.begin(env, store, tree)
    trainer.log.close()


def test_every_rank_may_have_trackers_in_its_settings(ranks, tiny_config):
    """Only the main rank opens them; a package that is not there is refused by `pretrain` on all ranks before anything starts."""
    ranks.run(2, begun, tree=tiny_config(**{"parallel.tp": 2}) | {"log": {"console": "quiet"}})
