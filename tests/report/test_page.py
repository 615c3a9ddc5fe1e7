"""The page holds all that the log has, says what it lacks, needs nothing else, and stays small however long the run."""

from __future__ import annotations

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import training

from dnapretrain.cli import main
from dnapretrain.errors import ConfigError
from dnapretrain.report.charts import Chart, Level, Line, draw, nice_ticks, thinned
from dnapretrain.report.compare import differing, flat, run_names, write_comparison
from dnapretrain.report.history import read_log
from dnapretrain.report.page import write_report
from dnapretrain.report.spikes import find_spikes
from dnapretrain.report.tables import short_duration

VOID = {"meta", "br", "line", "circle", "polyline", "polygon", "rect"}


class Checked(HTMLParser):
    """Every element is closed, and nothing is fetched from anywhere."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            assert name not in ("src", "href", "onload") or value.startswith("#"), (tag, name, value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text.append(data)


def text_of(page: str) -> str:
    assert "http" not in page.replace("http://www.w3.org", "")
    return " ".join(" ".join(Checked(page).text).split())


def step(number: int, bits: float = 1.95, **more):
    fixed = {"grad_norm": 0.5, "lr": 1e-3, "accuracy": 0.3, "seconds": 0.5, "tokens_per_second": 9e3, "mfu": None, "updated": True}
    return (
        {"kind": "train", "step": number, "bits_per_base": bits, "consumed_tokens": number * 10, "consumed_bases": number * 10}
        | fixed
        | more
    )


def write(run: Path, records) -> Path:
    run.mkdir(parents=True, exist_ok=True)
    (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return run


def trained(env, store, tree, until):
    return training.train(env, store, tree, until, save=True).losses


@pytest.fixture(scope="module")
def real_run(ranks, tmp_path_factory, small_shard):
    """A run of 24 steps with classes of bases, resumed after 12."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "some.bed").write_text("chr3\t100\t1400\n")
    for until in (12, 24):
        tree = {
            "data": {
                "train": [{"prefix": str(small_shard)}],
                "split": {"by": "contig", "valid_contigs": ["chr3"]},
                "sequence_length": 32,
                "regions": {"files": {"a <b> & c": str(folder / "some.bed")}, "soft_mask": True},
            },
            "model": {"num_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "ffn_hidden_size": 32, "transformer_impl": "torch"},
            "optim": {"lr": 1e-3},
            "train": {
                **{"run_dir": str(folder / "run"), "train_steps": 24, "micro_batch_size": 2, "global_batch_size": 4},
                **{"precision": "fp32", "device": "cpu", "eval_samples": 20},
            },
        }
        ranks.run(1, reported, tree=tree, until=until)
    return folder / "run"


def reported(env, store, tree, until):
    """Train with a record of each step, as `fit` writes them."""
    trainer, _, _ = training.begin(env, store, tree)
    while trainer.position.step < until:
        report = trainer.train_step(trainer.next_batches())
        trainer.log.step(report, trainer.position.consumed_samples, trainer._rates(report), False, 24, "")
    trainer.evaluate()
    trainer.save(trainer.position)
    trainer.log.close()


def test_the_page_of_a_real_run(real_run, capsys):
    assert main(["report", str(real_run)]) == 0
    assert capsys.readouterr().out.split() == [str(real_run / name) for name in ("report.html", "loss.png", "panels.png")]
    page = text_of((real_run / "report.html").read_text())
    history = read_log(real_run)
    last = history.held_out["valid"][-1]
    for wanted in (
        f"{last['bits_per_base']:.4f}",
        "24 of 24",
        "a <b> & c",
        "soft-masked",
        "restart",
        "Count models (what a model has to beat) have not been scored",
        "MFU (the peak of this device is not known",
        history.start["data_digest"],
        "torch scaled_dot_product_attention",
        "mlm_probability" if "mlm" in page else "num_layers",
    ):
        assert wanted in page, wanted
    assert len((real_run / "report.html").read_bytes()) < 200_000


def test_count_models_come_from_an_evaluation(real_run, tmp_path):
    ladder = {"markov": {"0": 2.0, "1": 1.97, "2": 1.96}, "tokens": {"all": 1.98}}
    found = {"baselines": {"bits_per_base": ladder, "best": "markov 2", "best_bits_per_base": 1.96, "fitted_bases": 5, "training_bases": 9}}
    (tmp_path / "e.json").write_text(json.dumps({"valid": {"bits_per_base": 1.9, **found}}))
    write_report(real_run, tmp_path / "p.html", tmp_path / "e.json")
    page = text_of((tmp_path / "p.html").read_text())
    assert "0.0600 bits per base below the best count model (markov 2)" in page
    assert "best count model on valid, markov 2: 1.9600" in page and "frequencies of tokens: 1.9800" in page
    (tmp_path / "bad.json").write_text("[1]")
    with pytest.raises(ConfigError, match=r"bad\.json is no evaluation"):
        write_report(real_run, tmp_path / "p.html", tmp_path / "bad.json")


def test_what_is_missing_is_said(tmp_path):
    """A log of a few steps and nothing else; a damaged line; a path with HTML in it."""
    run = write(tmp_path / "a<b>", [{"kind": "train", "step": 1, "bits_per_base": 2.1, "consumed_tokens": 5}])
    with (run / "log.jsonl").open("a") as file:
        file.write("half a li")
    write_report(run, run / "r.html")
    page = text_of((run / "r.html").read_text())
    for said in (
        "no start record",
        "1 line(s) of the log are damaged",
        "Nothing is held out",
        "No classes of bases",
        "No checkpoint",
        "a<b>",
    ):
        assert said in page, said
    assert "Not in the log: learning rate; gradient norm" in page


def test_a_long_run_stays_light(tmp_path):
    rng = np.random.default_rng(1)
    bits = 1.9 + 1 / np.sqrt(np.arange(1, 100_001)) + rng.normal(0, 0.01, 100_000)
    run = write(tmp_path / "long", (step(number, float(value)) for number, value in enumerate(bits, 1)))
    began = time.process_time()  # not the clock on the wall: others may use the machine
    write_report(run, run / "report.html")
    assert time.process_time() - began < 60
    assert len((run / "report.html").read_bytes()) < 300_000
    text_of((run / "report.html").read_text())


def test_spikes_are_found_and_located(real_run, tmp_path):
    from dnapretrain.report.spikes import add_loci

    steps = [step(number, 1.95 + 0.001 * (number % 3)) for number in range(1, 200)]
    assert find_spikes(steps) == ([], 0)
    steps[99] |= {"bits_per_base": 2.4}
    steps[149] |= {"grad_norm": 9.0}
    steps[179] |= {"bits_per_base": float("nan"), "updated": False}
    found, count = find_spikes(steps)
    assert [(spike.step, spike.what.split(",")[0], spike.updated) for spike in found] == [
        (100, "loss", True),
        (150, "gradient norm", True),
        (180, "loss", False),
    ]
    assert count == 3 and found[0].usual == pytest.approx(1.951, abs=1e-3)
    assert find_spikes(steps, most=1)[1] == 3
    assert find_spikes([{"step": number, "bits_per_base": 1.9} for number in range(50)]) == ([], 0)  # logs without gradient norms
    assert add_loci(real_run, found[:1]) == ""
    assert re.fullmatch(r"small:chr[12]:\d+-\d+\([+-]\)", found[0].loci[0]) and found[0].num_samples == 4
    assert "are not shown: " in add_loci(tmp_path, found[:1])


def test_bad_steps_and_other_records_are_shown(tmp_path):
    samples = [{"sample": 7, "loci": ["hg38:chr1:5-9(+)"]}]
    bad = {"kind": "bad_step", "step": 2, "reason": "loss is not finite", "action": "skip", "samples": samples}
    others = [
        {"kind": "rewind", "step": 2, "skipped_samples": 8},
        {"kind": "checkpoint", "step": 2, "path": "/c/2", "bytes": 2e9, "stall_seconds": 3.0},
    ]
    others += [
        {"kind": "stop", "step": 3, "reason": "SIGTERM"},
        {"kind": "deleted", "step": 2, "path": "/c/1"},
        {"kind": "something_new", "step": 3, "x": 1},
        {
            "kind": "startup",
            "step": 1,
            "total": 3.5,
            "seconds": {"imports": 3.0, "groups": 0.5},
            "slowest": {"imports": 3.25, "groups": 1.0},
        },
    ]
    run = write(tmp_path / "r", [step(1), step(2), bad, *others, step(3)])
    write_report(run, run / "r.html")
    page = text_of((run / "r.html").read_text())
    for said in (
        "loss is not finite",
        "hg38:chr1:5-9(+)",
        "rewind",
        "SIGTERM",
        "something new",
        "2.00 GB each",
        "1 old ones were deleted",
        "waited 3 s",
        "seconds (imports 3.00, groups 0.50), slowest (imports 3.25, groups 1.00)",
    ):
        assert said in page, said


def test_a_small_run_on_one_rank_reads_well(tmp_path):
    """Megabytes, no second list of times where there is one rank, settings as they are written."""
    regions = {"files": {"genes": {"path": "genes.gff3", "assembly": None, "skip_missing_contigs": False}}}
    config = {
        "data": {"regions": regions, "sequence_length": 8},
        "train": {"train_steps": 3, "global_batch_size": 2, "precision": "fp32", "exit_duration": None},
        "tokenizer": {"kind": "nucleotide"},
        "model": {"kind": "decoder", "num_layers": 1, "hidden_size": 8},
    }
    start = {"kind": "start", "step": 0, "config": config}
    times = {"imports": 3.0, "groups": 0.5}
    others = [
        {"kind": "checkpoint", "step": 2, "path": "/c/2", "bytes": 4.28e6},
        {"kind": "startup", "step": 1, "total": 3.5, "seconds": times, "slowest": times},
    ]
    run = write(tmp_path / "r", [start, step(1), step(2), *others, step(3)])
    write_report(run, run / "r.html")
    page = text_of((run / "r.html").read_text())
    assert "4.3 MB each" in page and "GB each" not in page
    assert "seconds (imports 3.00, groups 0.50)" in page and "slowest" not in page
    assert "files: {genes: {path: genes.gff3, skip_missing_contigs: false}}" in page and "None" not in page


def test_runs_are_compared(real_run, tmp_path, capsys):
    records = [json.loads(line) for line in (real_run / "log.jsonl").read_text().splitlines()]
    for record in records:
        if record["kind"] == "start":
            record["config"]["optim"]["lr"] = 0.5
    other = write(tmp_path / "other" / "run", records)
    output = tmp_path / "c.html"
    assert main(["report", str(real_run), str(other), "--output", str(output)]) == 0
    page = text_of(output.read_text())
    assert "optim.lr 0.001 0.5" in page and "All others are the same." in page and "a <b> & c" in page
    found = differing({name: read_log(path) for name, path in run_names([real_run, other]).items()})
    assert found == {"optim.lr": [0.001, 0.5]}
    with pytest.raises(ConfigError, match="given twice"):
        write_comparison([real_run, real_run], output)
    assert main(["report", str(real_run), str(other), "--output", str(tmp_path / "c.png")]) != 0


def test_names_of_runs():
    assert list(run_names([Path("/a/x/run"), Path("/a/y/run")])) == ["x/run", "y/run"]
    assert list(run_names([Path("/a/x"), Path("/b/y")])) == ["x", "y"]
    assert flat({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}


def test_thinning_keeps_mean_and_extremes():
    x, y = np.arange(1.0, 100_001.0), np.sin(np.arange(100_000) / 50)
    y[77_777], y[5] = 40.0, np.nan
    at, mean, low, high = thinned(x, y, 500)
    assert len(at) == 500 and high.max() == 40.0 and low.min() == np.nanmin(y)
    assert mean[0] == pytest.approx(np.nanmean(y[:200]))
    assert thinned(np.zeros(0), np.zeros(0))[0].size == 0


@pytest.mark.parametrize("log_scale", [False, True])
@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [0.0, 1e-9], [1e-4, 3e5], [float("nan"), 1.0], [-3.0, 5.0]])
def test_charts_of_all_ranges(values, log_scale):
    line = Line("a&b", np.arange(len(values), dtype=float), np.array(values), "#000000", band=True)
    picture = draw(Chart("t", [line], "steps", levels=[Level("l", 1.0)], log_scale=log_scale))
    Checked(picture)
    assert "nan" not in picture.lower() and "inf" not in picture.lower()


def test_ticks_and_durations():
    assert nice_ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert nice_ticks(1.91, 1.97) == [1.91, 1.92, 1.93, 1.94, 1.95, 1.96, 1.97]
    assert nice_ticks(3, 3) == [3]
    assert [short_duration(value) for value in (5, 65, 7325, 200_000)] == ["5 s", "1 min 5 s", "2 h 2 min", "2 d 7 h"]


def test_probes_of_a_run_are_a_section_and_a_picture(tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    run.mkdir()

    def found(number: int) -> dict:
        share = 0.5 + number / 100
        figures = {
            "share": share,
            "mean_bits": 0.25,
            "num_pairs": 200,
            "control_share": 0.55,
            "control_mean_bits": 0.1,
            "num_controls": 198,
        }
        silent = {**figures, "share": 0.61, "control_share": None, "control_mean_bits": None, "num_controls": 0}
        strands = {"correlation": 0.9123, "mean_abs_difference": 0.0345, "num_pairs": 100}
        results = {"start_codon": figures, "synonymous": silent, "reverse_complement": strands}
        return {
            "kind": "probes",
            "step": number,
            "consumed_tokens": 1,
            "num_windows": 1200,
            "num_tokens": 9,
            "seconds": 2.0,
            "results": results,
        }

    records = [{"kind": "start", "step": 0}, step(10), found(10), step(20), found(20), {"kind": "start", "step": 10}, step(20), found(20)]
    (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert [record["step"] for record in read_log(run).probes] == [10, 20]  # what an abandoned start logged is replaced
    paths = write_report(run, out / "r.html")
    said = text_of((out / "r.html").read_text())
    assert "start codon 70.0% +0.250 55.0% +0.100 200 198" in said and "synonymous 61.0% +0.250 - - 200 0" in said
    assert "correlation 0.9123, on average 0.0345 bits per base apart" in said and "4 s for 2 evaluations" in said
    assert paths[-1] == out / "probes.png" and paths[-1].read_bytes()[:4] == b"\x89PNG"
    without = tmp_path / "without"
    without.mkdir()
    (without / "log.jsonl").write_text(json.dumps(step(1)) + "\n")
    assert "probes.png" not in [path.name for path in write_report(without, without / "r.html")]
    assert "No probes: set data.probes.genome" in text_of((without / "r.html").read_text())
