"""`locate`, `was-seen` and `coverage`: against the FASTA files, and against counting every sample."""

from __future__ import annotations

import io
import itertools
import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import slow
import yaml

from dnapretrain.cli import main
from dnapretrain.config_file import load_config
from dnapretrain.data.audit import coverage as coverage_module
from dnapretrain.data.audit import placed
from dnapretrain.data.audit.coverage import write_coverage
from dnapretrain.data.audit.locate import Wanted, locate, samples_of_step
from dnapretrain.data.audit.runs import Steps, open_run, open_set, open_train
from dnapretrain.data.audit.was_seen import was_seen
from dnapretrain.data.shards.preprocess import preprocess
from dnapretrain.errors import ConfigError

OBJECTIVES = {
    "nucleotide": ("decoder", {}, {"kind": "nucleotide"}),
    "no bos": ("decoder", {}, {"kind": "nucleotide", "add_bos": False}),
    "kmer": ("decoder", {"random_phase": True}, {"kind": "kmer", "k": 3}),
    "masked": ("encoder", {"random_phase": True, "masking": {"mlm_probability": 0.3}}, {"kind": "kmer", "k": 3}),
}
RULES = {
    "windows": {},
    "overlap": {"stride": 7},
    "packed": {"sampling": "packed"},
    "jitter": {"window_jitter": 5},
    "items": {"window_length": 9, "stride": 20, "window_jitter": 13},
    "contigs": {"sampling": "packed", "pack_order": "contig"},
}
MODEL = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "ffn_hidden_size": 8}


def random_contig(rng, length):
    text = "".join(rng.choices("ACGTACGTacgtRN", k=length))
    return text[: length // 2] + "N" * 12 + text[length // 2 :]


def fasta_files(folder):
    """Two assemblies; both have a c1. Contigs by (assembly, contig)."""
    rng = random.Random(4)
    contigs = {}
    for assembly, names in (("left", ["c1", "c2", "c3"]), ("right", ["c1", "d2"])):
        for name in names:
            contigs[assembly, name] = random_contig(rng, rng.randint(20, 300))
        records = "".join(f">{name}\n{contigs[assembly, name]}\n" for name in names)
        (folder / f"{assembly}.fa").write_text(records)
        preprocess([folder / f"{assembly}.fa"], folder / assembly)
    (folder / "other.fa").write_text(">o1\nACGTACGTACGT\n")
    preprocess([folder / "other.fa"], folder / "other")
    return contigs


def write_config(folder, objective="nucleotide", **data):
    kind, of_objective, tokenizer = OBJECTIVES[objective]
    data = {
        "train": [{"prefix": str(folder / "left"), "weight": 3}, str(folder / "right")],
        "sequence_length": 12,
        "reverse_complement": 0.5,
        "split": {"by": "block", "block_size": 40, "valid_fraction": 0.2, "test_fraction": 0.1},
        "valid": {"other": str(folder / "other")},
        **of_objective,
        **data,
    }
    train = {"run_dir": str(folder / "run"), "train_steps": 40, "micro_batch_size": 2, "global_batch_size": 8}
    train["rampup_batch_size"] = [4, 4, 40]
    tree = {"data": data, "tokenizer": tokenizer, "model": MODEL | {"kind": kind}, "optim": {"lr": 1e-3}, "train": train}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture
def contigs(tmp_path):
    return fasta_files(tmp_path)


def bases_read(stream, limit):
    """Per sample of the training set: sets of (assembly, contig, position) by strand."""
    read = []
    for sample in range(limit):
        by_strand = {"+": set(), "-": set()}
        for locus in stream.locate(sample):
            by_strand[locus.strand] |= {(locus.assembly, locus.contig, place) for place in range(locus.start, locus.end)}
        read.append(by_strand)
    return read


STAGES = [{"until_step": 20, "weights": [1, 1]}, {"until_samples": 200, "weights": [0, 1]}, {"blend_alpha": 1.0}]


LENGTHS = [
    {"until_samples": 32, "sequence_length": 7, "weights": [1, 2]},
    {"until_step": 15, "sequence_length": 25},
    {"sequence_length": 7, "blend_alpha": 1.0},
]
"""Other lengths from samples 32 and 80 on."""


# Round trip


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_sample_to_loci_to_fasta_to_tokens(tmp_path, contigs, objective, rules):
    check_round_trip(load_config(write_config(tmp_path, objective, **RULES[rules])), contigs, range(60))


@pytest.mark.parametrize("rules", ["windows", "packed", "jitter"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_same_on_both_sides_of_a_change_of_length(tmp_path, contigs, objective, rules):
    config = load_config(write_config(tmp_path, objective, **RULES[rules], stages=LENGTHS))
    stream = open_train(config)
    assert [stream.length_at(sample) for sample in (31, 32, 79, 80)] == [7, 25, 25, 7]
    check_round_trip(config, contigs, range(12, 104))


def check_round_trip(config, contigs, samples):
    stream = open_train(config)
    strands, phases = set(), set()
    for sample in samples:
        batch = stream.batch(np.array([sample]))
        expected = batch.labels[0].tolist() if config.is_masked else [*batch.tokens[0].tolist(), int(batch.labels[0, -1])]
        found = []
        [row] = locate(stream, [Wanted(sample)], with_bases=True)
        for locus in row["loci"]:
            text = contigs[locus["assembly"], locus["contig"]][locus["start"] : locus["end"]]
            text = slow.reverse_complement(text) if locus["strand"] == "-" else text
            assert text == locus["bases"]
            found += stream.tokenizer.encode(text).tolist()
            strands.add(locus["strand"])
            phases.add(locus["phase"])
        assert [token for token in expected if token not in (0, 1, 2)] == found
    assert strands == {"+", "-"}
    assert phases == (set(range(3)) if config.data.random_phase else {0})


# Steps


def test_steps_follow_the_batch_size(tmp_path, contigs):
    steps = Steps(load_config(write_config(tmp_path)))
    ids = [steps.samples(step) for step in range(1, 41)]
    assert [len(some) for some in ids[:12]] == [4] * 10 + [8] * 2
    assert list(itertools.chain(*ids)) == list(range(ids[-1].stop))
    assert all(steps.of_sample(sample) == step for step, some in enumerate(ids, 1) for sample in some)
    with pytest.raises(ConfigError, match="step 0 does not exist"):
        steps.samples(0)


def test_ranks_read_their_micro_batches(tmp_path, contigs):
    config = load_config(write_config(tmp_path))
    parts = [samples_of_step(config, 12, rank, 2) for rank in range(2)]
    assert [[(item.sample, item.micro_batch) for item in part] for part in parts] == [
        [(48, 0), (49, 0), (52, 1), (53, 1)],
        [(50, 0), (51, 0), (54, 1), (55, 1)],
    ]
    assert [item.sample for item in samples_of_step(config, 12)] == list(range(48, 56))
    for rank, size, says in (
        (2, 2, "is none of --world-size = 2"),
        (None, 2, "--world-size needs --rank"),
        (0, None, "--rank needs --world"),
    ):
        with pytest.raises(ConfigError, match=says):
            samples_of_step(config, 12, rank, size)
    with pytest.raises(ConfigError, match=r"step 1 has 4 samples.* 2 x 4"):
        samples_of_step(config, 1, 0, 4)


# was-seen and coverage against counting


@pytest.mark.parametrize("data", [{}, {"stages": STAGES, "min_length": 15}], ids=["blend", "stages"])
@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("objective", ["nucleotide", "no bos", "kmer"])
def test_equal_to_counting_every_sample(tmp_path, contigs, objective, rules, data, monkeypatch):
    monkeypatch.setattr(coverage_module, "SLICE", 300)
    monkeypatch.setattr(placed, "RUNS_AT_A_TIME", 300)
    config = load_config(write_config(tmp_path, objective, **RULES[rules], **data))
    stream, rng = open_train(config), random.Random(1)
    for step in (0, 29):
        limit = config.samples_after(step)
        read = bases_read(stream, limit)
        check_loci(config, contigs, read, step, rng)
        check_coverage(config, read, step)


@pytest.mark.parametrize("rules", ["windows", "packed", "jitter"])
@pytest.mark.parametrize("objective", ["nucleotide", "no bos", "kmer"])
def test_equal_to_counting_with_several_lengths(tmp_path, contigs, objective, rules, monkeypatch):
    monkeypatch.setattr(coverage_module, "SLICE", 300)
    monkeypatch.setattr(placed, "RUNS_AT_A_TIME", 300)
    config = load_config(write_config(tmp_path, objective, **RULES[rules], stages=LENGTHS))
    stream, rng = open_train(config), random.Random(1)
    for step in (0, 8, 15, 40, 200):
        read = bases_read(stream, config.samples_after(step))
        check_loci(config, contigs, read, step, rng)
        check_coverage(config, read, step)


def check_loci(config, contigs, read, step, rng):
    loci = []
    for assembly, contig in contigs:
        for _ in range(3):
            start = rng.randrange(len(contigs[assembly, contig]))
            loci.append((assembly, contig, start, start + rng.randint(1, 30)))
    for (assembly, contig, start, end), seen in zip(
        loci, was_seen(config, [f"{a}:{c}:{s + 1}-{e}" for a, c, s, e in loci], step), strict=True
    ):
        bases = {(assembly, contig, place) for place in range(start, end)}
        readers = [sample for sample, by_strand in enumerate(read) if any(bases & some for some in by_strand.values())]
        assert seen.any == len(readers)
        assert seen.all == sum(bases <= set.union(*by_strand.values()) for by_strand in read)
        assert seen.strands == {strand: sum(bool(bases & by_strand[strand]) for by_strand in read) for strand in "+-"}
        assert seen.samples == ((readers[0], readers[-1]) if readers else None)
        if readers:
            assert seen.steps == (Steps(config).of_sample(readers[0]), Steps(config).of_sample(readers[-1]))
        assert sum(seen.sides.values()) + seen.absent == end - start


def check_coverage(config, read, step):
    times = Counter(base for by_strand in read for base in set.union(*by_strand.values()))
    output = io.StringIO()
    summary = write_coverage(config, step, output)
    lines = [line.split("\t") for line in output.getvalue().splitlines()]
    assert lines == sorted(lines, key=lambda line: (line[0], int(line[1])))
    for (name, _, end, count), (next_name, start, _, next_count) in itertools.pairwise(lines):
        assert (name, end, count) != (next_name, start, next_count), "runs are merged"
        assert name != next_name or int(end) <= int(start)
    found = {(*name.split(":"), place): int(count) for name, start, end, count in lines for place in range(int(start), int(end))}
    assert {base: count for base, count in found.items() if count} == times
    stream = open_train(config)
    assert len(found) == summary.bases == sum(source.segments.bases for source in stream.sources)
    assert (summary.never_seen, summary.times_seen) == (sum(not count for count in found.values()), sum(times.values()))
    assert summary.most == max(times.values(), default=0)


def test_sides_of_the_split(tmp_path, contigs):
    config = load_config(write_config(tmp_path, split={"by": "contig", "valid_contigs": ["left:c2"], "test_contigs": ["d2"]}))
    half = len(contigs["left", "c2"]) // 2 - 6
    texts = [f"left:c2:{half - 4}-{half + 25}", "d2:1-5", "o1:3-4", "right:c1:1-10", "c3:1-10,000"]
    seen = was_seen(config, texts, 30)
    assert list(seen[0].sides) == ["valid"] and seen[0].sides["valid"] + seen[0].absent == 30 and 12 <= seen[0].absent < 20
    assert seen[1].sides == {"test": 5} and seen[1].any == 0 and seen[1].steps is None
    assert seen[2].sides == {"other": 2}
    assert seen[3].sides == {"train": 10} and seen[3].any > 0
    assert seen[4].absent == 10_000 - seen[4].sides["train"] > 9000 and seen[4].all == 0
    assert str(seen[4].locus) == "left:c3:1-10000"


def test_loci_that_are_refused(tmp_path, contigs):
    config = load_config(write_config(tmp_path))
    for text, message in (
        ("left:c9:1-5", "contig 'left:c9' is in no shard of the run. Near names: left:c"),
        ("c1:1-5", "contig 'c1' is in 2 assemblies. Give one of them: left:c1, right:c1"),
        ("left:c1", "'left:c1' is not a locus"),
        ("left:c1:5-4", "starts at 5 and ends at 4"),
        ("left:c1:0-4", "starts at 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            was_seen(config, [text], 5)
    with pytest.raises(ConfigError, match="below 0"):
        was_seen(config, ["c2:1-2"], -1)


# A long run over a large corpus


def test_long_runs_are_answered_at_once(tmp_path):
    rng = np.random.default_rng(0)
    text = np.frombuffer(b"ACGT", np.uint8)[rng.integers(0, 4, 8_000_000)].tobytes().decode()
    (tmp_path / "big.fa").write_text(f">c1\n{text}\n>c2\n{text[:100_000]}\n")
    preprocess([tmp_path / "big.fa"], tmp_path / "big")
    for sampling in ("windows", "packed"):
        path = write_config(tmp_path, train=[str(tmp_path / "big")], sequence_length=512, sampling=sampling, valid={}, split={})
        config = load_config(path, ["train.train_steps=20_000_000", "train.rampup_batch_size=null"])
        begun = time.process_time()
        [seen] = was_seen(config, ["c1:4,000,001-4,000,100"], 1_000_000)
        assert time.process_time() - begun < 30  # about a second where nothing else runs; counting 8 million samples takes minutes
        epochs = 8_000_000 / open_train(config).num_samples
        assert int(epochs) <= seen.all <= seen.any <= int(epochs) + 1 or (sampling == "packed" and int(epochs) <= seen.any <= 1.4 * epochs)


# The command line


def test_commands(tmp_path, contigs, capsys):
    path = str(write_config(tmp_path))
    assert main(["locate", path, "--step", "12", "--rank", "1", "--world-size", "2"]) == 0
    text = capsys.readouterr().out
    assert "train  step 12  rank 1  micro-batch 0  sample 50  epoch " in text and text.count("phase 0") == 4
    assert main(["locate", path, "--sample", "50", "0", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["sample"] for row in rows] == [50, 0] and rows[0]["loci"][0]["locus"] in text
    assert main(["locate", path, "--sample", "50", "--fasta"]) == 0
    header, bases = capsys.readouterr().out.splitlines()
    locus = rows[0]["loci"][0]
    assert header.startswith(f">{locus['locus']} set=train sample=50") and len(bases) == locus["end"] - locus["start"]
    assert main(["locate", path, "--sample", "0", "--set", "other"]) == 0
    assert "other:o1:1-12(+)" in capsys.readouterr().out
    (tmp_path / "loci.bed").write_text("# two\nleft:c1\t0\t10\nd2\t3\t4\tname\n")
    assert main(["was-seen", path, "c3:1-10", "--bed", str(tmp_path / "loci.bed"), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["locus"], row["start"], row["end"], row["up_to_step"]) for row in rows] == [
        ("left:c3:1-10", 0, 10, 40),
        ("left:c1:1-10", 0, 10, 40),
        ("right:d2:4-4", 3, 4, 40),
    ]
    assert main(["was-seen", path, "left:c1:1-10", "c3:1-10"]) == 0
    assert "left:c1:1-10  10 bases\n  bases " in capsys.readouterr().out
    assert main(["coverage", path, "--output", str(tmp_path / "c.bedgraph"), "--up-to-step", "9"]) == 0
    assert "up to step 9: read" in capsys.readouterr().out
    assert main(["coverage", path, "--up-to-step", "9"]) == 0
    assert capsys.readouterr().out == (tmp_path / "c.bedgraph").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["locate", "--sample", "1", "--rank", "0"], "--rank and --world-size choose a part of a step"),
        (["locate", "--step", "1", "--rank", "0"], "--rank needs --world-size too"),
        (
            ["locate", "--step", "1", "--rank", "2", "--world-size", "2"],
            "--rank = 2 is none of --world-size = 2 ranks. Give one from 0 to 1",
        ),
        (["was-seen", "config.yaml"], "'config.yaml' is a file, not a locus. Give --bed config.yaml"),
        (["locate", "--step", "1", "--set", "valid"], "steps read the training set only"),
        (["locate", "--sample", "0", "--set", "vaild"], "the run has no set 'vaild'. It has: train, valid, test, other"),
        (["locate", "--sample", "-1"], "sample id -1 is not in"),
        (["was-seen"], "no locus is given"),
        (["was-seen", "--bed", "config.yaml"], "config.yaml: line 1 is not 'contig<tab>start<tab>end'"),
        (["coverage", "--up-to-step", "-3"], "--up-to-step = -3 is below 0"),
    ],
)
def test_mistakes_are_one_line(tmp_path, contigs, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path)
    assert main([arguments[0], "config.yaml", *arguments[1:]]) != 0
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_run_folder_knows_its_last_step(tmp_path, contigs):
    path, run = write_config(tmp_path), tmp_path / "run"
    run.mkdir()
    with pytest.raises(ConfigError, match=r"holds no run\.yaml"):
        open_run(run)
    (run / "run.yaml").write_text(path.read_text())
    assert open_run(run)[1] == open_run(path)[1] == 40
    (run / "checkpoints" / "step_00000006").mkdir(parents=True)
    (run / "checkpoints" / "latest").write_text("step_00000006\n")
    (run / "checkpoints" / "step_00000006" / "state.json").write_text('{"step": 6}')
    assert open_run(run)[1] == 6
    (run / "log.jsonl").write_text('{"kind": "start", "step": 0}\n{"kind": "train", "step": 8}\n{"kind": "eval", "step": 8}\n{"kind": "tr')
    assert open_run(run)[1] == 8


def test_import_needs_no_torch():
    code = "import sys, dnapretrain.cli, dnapretrain.data.audit.coverage; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_held_out_set_of_the_run(tmp_path, contigs):
    stream = open_set(load_config(write_config(tmp_path)), "other")
    assert [Path(row["source"]).name for row in locate(stream, [Wanted(0)])] == ["other"]
