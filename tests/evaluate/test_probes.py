"""Probes: figures by hand, a planted answer, and every layout equal to the windows one by one."""

from __future__ import annotations

import contextlib
import io
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import training

from dnapretrain.config import TokenizerConfig
from dnapretrain.data.genes.probe_pairs import Pair, Probe, Window
from dnapretrain.data.genes.probe_places import reverse_of
from dnapretrain.data.sampling.probe_windows import ProbeWindows
from dnapretrain.data.shards.preprocess import preprocess
from dnapretrain.data.tokens.tokenizers import build_tokenizer
from dnapretrain.evaluate.probes import pair_figures, result_lines, strand_figures, summarise_probes

MOTIF = "CCAGGAGGACC"
"""Stands before every start codon of the planted genome, and nowhere else."""


def compared(true, other, control_true=(), control_other=()):
    ids = [np.array(values, np.int64) for values in (true, other, control_true, control_other)]
    return SimpleNamespace(name="start_codon", true=ids[0], other=ids[1], control_true=ids[2], control_other=ids[3])


def test_figures_by_hand():
    bits = np.array([10.0, 12.0, 11.0, 11.0, 9.0, 8.0])
    figures = pair_figures(compared([0, 2, 4], [1, 3, 5], [1], [0]), bits)
    # 10 < 12: right by 2; 11 = 11: half; 9 > 8: wrong by 1. Control: 12 > 10, wrong by 2.
    assert figures["share"] == pytest.approx((1 + 0.5 + 0) / 3) and figures["mean_bits"] == pytest.approx((2 + 0 - 1) / 3)
    assert (figures["control_share"], figures["control_mean_bits"], figures["num_pairs"], figures["num_controls"]) == (0.0, -2.0, 3, 1)
    without = pair_figures(compared([0], [1]), np.array([1.0, math.nan]))
    assert without["share"] is None and without["control_share"] is None and without["num_controls"] == 0
    both = strand_figures(compared([0, 1, 2], [3, 4, 5]), np.array([1.0, 2.0, 3.0, 1.5, 2.5, 3.5]))
    assert both == {"correlation": pytest.approx(1.0), "mean_abs_difference": pytest.approx(0.5), "num_pairs": 3}
    assert strand_figures(compared([0, 1], [0, 1]), np.array([2.0, 2.0]))["correlation"] is None
    lines = list(result_lines({"start_codon": figures, "reverse_complement": both}))
    assert lines[0].endswith("true one likelier in 50.0%, by +0.333 bits; controls 0.0%, -2.000 bits (3 pairs)")
    assert lines[1].endswith("correlation 1.0000, 0.5000 bits per base apart (3 pairs)")


def test_a_model_that_knows_the_answer_and_one_that_knows_the_letters():
    """-log P by a rule over the text: ATG costs 3 bits less where the motif stands before it; or wherever it stands."""
    rng = np.random.default_rng(0)

    def pair(before):
        left, right = ("".join(rng.choice(list("ACGT"), size)) for size in (20, 26))
        texts = [left + before + codon + right for codon in ("ATG", "ACG")]
        return Pair(*(Window(text, ((31, 34),)) for text in texts), "")

    pairs, controls = [pair(MOTIF) for _ in range(30)], [pair("".join(rng.choice(list("ACGT"), 11))) for _ in range(30)]
    tokenizer = build_tokenizer(TokenizerConfig())
    probes = ProbeWindows([Probe("start_codon", 30, pairs, controls)], tokenizer, False, 64, 1)
    texts = [tokenizer.decode(probes.batch(np.array([row])).labels[0])[:60] for row in range(probes.num_samples)]
    knows = np.array([60 - 3 * (text[31:34] == "ATG" and text[20:31] == MOTIF) for text in texts]) * math.log(2)
    counts = np.array([60 - 3 * (text[31:34] == "ATG") for text in texts]) * math.log(2)
    found = summarise_probes(probes, knows)["start_codon"]
    assert (found["share"], found["control_share"]) == (1.0, 0.5) and found["mean_bits"] == pytest.approx(3)
    found = summarise_probes(probes, counts)["start_codon"]
    assert found["share"] == found["control_share"] == 1.0 and found["control_mean_bits"] == pytest.approx(3)


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Path:
    """Folder with genome.* (base shard) and genes.gff3: genes of 90 bases on both strands, MOTIF before each."""
    folder, rng = tmp_path_factory.mktemp("planted"), np.random.default_rng(4)
    codons, text, rows = ["GCT", "GAA", "CTG", "AAC", "TCC", "CGT", "GTT", "ACC", "GGC"], "", []
    for number in range(120):
        coding = "ATG" + "".join(rng.choice(codons, 28)) + "TAA"
        unit, strand = MOTIF + coding, "+-"[number % 2]
        text += "".join(rng.choice(list("ACGT"), 60))
        start = len(text) + (len(MOTIF) if strand == "+" else 0)
        text += unit if strand == "+" else reverse_of(unit)
        end = start + len(coding)
        rows.append(f"chr1\tx\tgene\t{start + 1}\t{end}\t.\t{strand}\t.\tID=g{number};gene_biotype=protein_coding")
        rows.append(f"chr1\tx\tCDS\t{start + 1}\t{end}\t.\t{strand}\t0\tID=c{number};Parent=g{number}")
    (folder / "genome.fa").write_text(f">chr1\n{text}\n")
    (folder / "genes.gff3").write_text("##gff-version 3\n" + "\n".join(rows) + "\n")
    preprocess([folder / "genome.fa"], folder / "genome")
    return folder


def with_probes(tree, planted, **settings):
    tree["data"]["probes"] = {"genome": str(planted / "genome"), "annotation": str(planted / "genes.gff3"), "sites": 9, **settings}
    return tree


def asked(env, store, tree):
    """(what each window costs, the same window by window on one rank)."""
    from dnapretrain.evaluate.probes import window_nats

    trainer, data, _ = training.begin(env, store, tree)
    probes, config = data.probes, trainer.config
    with torch.no_grad():
        nats = window_nats(trainer.chunks, probes, trainer.place, config.data.sequence_length, config.train.loss)
    if env.world_size > 1:
        return nats, None
    model, one_by_one = trainer.chunks[0].eval(), []
    for number in range(probes.num_samples):
        batch = probes.batch(np.array([number]))
        size = int((batch.labels[0] != data.tokenizer.pad_id).sum())
        tokens, labels = (torch.from_numpy(values[:, :size]) for values in (batch.tokens, batch.labels))  # without any padding
        with torch.no_grad():
            loss, *_ = model(tokens, torch.arange(size)[None], None, labels=labels)
        scale = data.tokenizer.k if config.train.loss == "nucleotide" else 1
        one_by_one.append(float(loss[torch.from_numpy(batch.loss_mask[:, :size]) > 0].double().sum()) * scale)
    return nats, np.array(one_by_one)


LAYOUTS = ((2, {"parallel.tp": 2}), (2, {"parallel.pp": 2, "parallel.vpp": 2}), (2, {}), (2, {"parallel.cp": 2}))
MODELS = {
    "decoder": {},
    "k-mers by their bases": {"tokenizer.kind": "kmer", "tokenizer.k": 3, "train.loss": "nucleotide"},
    "encoder": {"model.kind": "encoder", "data.masking": {"mlm_probability": 0.15}, "model.num_query_groups": None},
}


@pytest.mark.parametrize("model", MODELS)
def test_equals_window_by_window_under_every_layout(ranks, tiny_config, planted, model):
    trees = iter(
        [
            with_probes(tiny_config(f"{model}{n}", **MODELS[model], **layout), planted, window_length=30)
            for n, layout in enumerate([{}, *(layout for _, layout in LAYOUTS)])
        ]
    )
    [(alone, one_by_one)] = ranks.run(1, asked, tree=next(trees))
    assert len(alone) > 90 and alone == pytest.approx(one_by_one, abs=2e-4)
    assert len(set(alone.round(6))) > 60
    count = {"decoder": 4, "encoder": 3}.get(model, 1)
    for (world_size, _), tree in zip(LAYOUTS[:count], trees, strict=False):
        for nats, _ in ranks.run(world_size, asked, tree=tree):
            assert nats == pytest.approx(alone, abs=2e-4)


def logged(env, store, tree):
    trainer, *_ = training.begin(env, store, tree)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        trainer.evaluate()
        for _ in range(2):  # the first one has learning rate 0
            trainer.train_step(trainer.next_batches())
        trainer.evaluate()
        trainer.log.close()
    return printed.getvalue(), [chunk.training for chunk in trainer.chunks]


def test_a_run_asks_at_every_evaluation(ranks, tiny_config, planted):
    names = ["start_codon", "splice_donor", "reverse_complement"]
    tree = with_probes(tiny_config("logs"), planted, window_length=30, names=names)
    [(said, training_again)] = ranks.run(1, logged, tree=tree)
    run_dir = Path(tree["train"]["run_dir"])
    records = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    before, after = (record for record in records if record["kind"] == "probes")
    assert (before["step"], after["step"]) == (0, 2) and after["seconds"] > 0 and before["num_windows"] == 9 * 2 * 3
    assert list(after["results"]) == ["start_codon", "reverse_complement"]  # there is no intron
    assert before["results"] != after["results"]
    assert (after["results"]["start_codon"]["num_pairs"], after["results"]["start_codon"]["num_controls"]) == (9, 9)
    start = next(record for record in records if record["kind"] == "start")
    assert start["probes"]["start_codon"]["candidates"] == 120 and start["probes"]["splice_donor"]["pairs"] == 0
    assert "probes at step 2 | 54 windows, 1,674 tokens |" in said and "start_codon | true one likelier in" in said
    assert training_again == [True]
