"""Windows of probes as samples: tokens and targets for each kind of tokenizer and model, and settings that cannot be."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
from streams import tokenizer_of

from dnapretrain.config_file import config_from_dict
from dnapretrain.data.genes.probe_pairs import Pair, Probe, Window
from dnapretrain.data.sampling.probe_windows import ProbeWindows, open_probes, probe_lines
from dnapretrain.data.shards.preprocess import preprocess
from dnapretrain.data.tokens.bpe import train_bpe
from dnapretrain.data.tokens.tokenizers import build_tokenizer
from dnapretrain.errors import ConfigError, DataError

TEXT = "ACGTTGCATGCCAGTACCGTATGA"
"""24 bases."""


def windows_of(tokenizer, is_masked, spans=((7, 10),), other=None, room=32):
    other = other or TEXT[:8] + "C" + TEXT[9:]
    pair = Pair(Window(TEXT, spans), Window(other, spans), "chr:8(+)")
    return ProbeWindows([Probe("start_codon", 3, [pair, pair])], tokenizer, is_masked, room, 8)


@pytest.mark.parametrize("kind", ["nucleotide", "kmer", "nt_v2", "generator", "aido_dna"])
def test_a_decoder_predicts_every_token(kind):
    tokenizer = tokenizer_of(
        kind,
        k=6 if kind != "aido_dna" else 1,
        base_order={"aido_dna": "AGCT"}.get(kind, "ATCG" if kind[0] in "ng" and kind != "nucleotide" else "ACGT"),
    )
    probes = windows_of(tokenizer, False)
    assert probes.num_samples == 2 and probes.probes[0].true.tolist() == [0, 0] and probes.probes[0].other.tolist() == [1, 1]  # each once
    batch, words = probes.batch(np.array([0, 1])), tokenizer.encode(TEXT)
    size = len(words)
    assert probes.sequence_length == -(-size // 8) * 8 and batch.tokens.shape == (2, probes.sequence_length)
    assert batch.tokens[0, 0] == tokenizer.bos_id and batch.tokens[0, 1:size].tolist() == words[:-1].tolist()
    assert batch.labels[0, :size].tolist() == words.tolist() and set(batch.labels[0, size:]) <= {tokenizer.pad_id}
    assert batch.loss_mask[0].tolist() == [1.0] * size + [0.0] * (probes.sequence_length - size)
    assert probes.bases.tolist() == [24, 24]


def test_without_bos_the_first_token_is_only_read():
    tokenizer = tokenizer_of("kmer", k=3, add_bos=False)
    probes = windows_of(tokenizer, False)
    batch, words = probes.batch(np.array([0])), tokenizer.encode(TEXT)
    assert batch.tokens[0, :7].tolist() == words[:-1].tolist() and batch.labels[0, :7].tolist() == words[1:].tolist()
    assert probes.bases.tolist() == [21, 21]


@pytest.mark.parametrize(
    ("kind", "k", "masked"),
    [("nucleotide", 6, [7, 8, 9]), ("kmer", 6, [1]), ("kmer", 3, [2, 3]), ("nt_v2", 6, [1]), ("aido_dna", 1, [7, 8, 9])],
)
def test_an_encoder_predicts_the_tokens_of_the_site(kind, k, masked):
    tokenizer = tokenizer_of(kind, k=k, base_order={"nt_v2": "ATCG", "aido_dna": "AGCT"}.get(kind, "ACGT"), add_eos=kind == "aido_dna")
    probes = windows_of(tokenizer, True)
    batch = probes.batch(np.array([0, 1]))
    for row, text in enumerate((TEXT, TEXT[:8] + "C" + TEXT[9:])):
        words = tokenizer.encode(text)
        places = [1 + place for place in masked]
        assert np.flatnonzero(batch.loss_mask[row]).tolist() == places
        assert batch.labels[row, 1 : 1 + len(words)].tolist() == words.tolist()
        read = words.copy()
        read[masked] = tokenizer.mask_id
        assert batch.tokens[row, 1 : 1 + len(words)].tolist() == read.tolist()
        assert batch.tokens[row, 1 + len(words)] == (tokenizer.eos_id if kind == "aido_dna" else tokenizer.pad_id)
    assert (batch.tokens[0] == batch.tokens[1]).all()  # what is compared is hidden from both


@pytest.mark.parametrize("is_masked", [False, True])
def test_byte_pairs_are_compared_over_the_same_bases(tmp_path, is_masked):
    rng = np.random.default_rng(2)
    text = "".join(rng.choice(list("ACGT"), 4000))
    (tmp_path / "x.fa").write_text(f">c\n{text}\n")
    preprocess([tmp_path / "x.fa"], tmp_path / "x")
    train_bpe([tmp_path / "x"], tmp_path / "bpe.json", vocab_size=60)
    from dnapretrain.config import TokenizerConfig

    tokenizer = build_tokenizer(TokenizerConfig(kind="bpe", file=tmp_path / "bpe.json"))
    pairs = []
    for start in range(0, 3900, 60):
        one = text[start : start + 60]
        two = one[:30] + {"A": "C", "C": "G", "G": "T", "T": "A"}[one[30]] + one[31:]
        pairs.append(Pair(Window(one, ((29, 32),)), Window(two, ((29, 32),)), ""))
    probes = ProbeWindows([Probe("start_codon", 1, pairs)], tokenizer, is_masked, 64, 1)
    [compared] = probes.probes
    batch = probes.batch(np.arange(probes.num_samples))
    assert (probes.bases[compared.true] == probes.bases[compared.other]).all()
    if is_masked:
        different = 0
        for one, two, pair in zip(compared.true, compared.other, pairs, strict=True):
            hidden = []
            for row, window in ((one, pair.true), (two, pair.other)):
                ends = np.cumsum([len(tokenizer.tokens[token]) for token in tokenizer.encode(window.text)])
                places = np.flatnonzero(batch.loss_mask[row]) - 1
                hidden.append((int(ends[places[0] - 1]) if places[0] else 0, int(ends[places[-1]])))
                assert (np.diff(places) == 1).all()
            assert hidden[0] == hidden[1] and hidden[0][0] <= 29 and hidden[0][1] >= 32
            different += (batch.loss_mask[one] != batch.loss_mask[two]).any()
        assert different > 5


def test_pairs_that_a_sample_has_no_room_for_are_counted():
    with pytest.raises(DataError, match=r"no pair of windows is left.*2 more tokens than a sample has"):
        windows_of(tokenizer_of("nucleotide"), False, room=23)


GFF = "chr1\tx\tgene\t11\t190\t.\t+\t.\tID=g;gene_biotype=protein_coding\nchr1\tx\tCDS\t11\t190\t.\t+\t0\tID=c;Parent=g\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    text = "".join(rng.choice(list("ACGT"), 400))
    coding = "ATG" + "".join(rng.choice(["GCT", "GAA", "CTG", "AAA", "TCC"], 58)) + "TAA"
    (tmp_path / "genome.fa").write_text(f">chr1\n{text[:10]}{coding}{text[190:]}\n")
    (tmp_path / "genes.gff3").write_text("##gff-version 3\n" + GFF)
    preprocess([tmp_path / "genome.fa"], tmp_path / "shard")
    return tmp_path


def tree(folder: Path, **probes):
    settings = {"genome": str(folder / "shard"), "annotation": str(folder / "genes.gff3"), "window_length": 40, "sites": 5}
    return {
        "data": {"train": str(folder / "shard"), "sequence_length": 64, "probes": {**settings, **probes}},
        "model": {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "ffn_hidden_size": 16},
        "optim": {"lr": 1e-3},
        "train": {"run_dir": str(folder / "run"), "train_steps": 9, "micro_batch_size": 1, "global_batch_size": 1},
    }


def opened(tree):
    config = config_from_dict(copy.deepcopy(tree))
    return open_probes(config, build_tokenizer(config.tokenizer))


def test_a_sequence_file_gives_what_its_shard_gives(folder):
    one, other = opened(tree(folder, force=True)), opened(tree(folder, force=True, genome=str(folder / "genome.fa")))
    assert [vars(probe)["report"] for probe in one.probes] == [vars(probe)["report"] for probe in other.probes]
    everything = np.arange(one.num_samples)
    assert (one.batch(everything).tokens == other.batch(everything).tokens).all()
    said = list(probe_lines(one.probes))
    assert "stop_codon: 1 pairs of 1 candidates, 1 controls" in said and "splice_donor: 0 pairs of 0 candidates" in said
    assert "start_codon: 0 pairs of 1 candidates; passed over: 1 other letters, or the end of a contig" in said
    assert opened({**tree(folder), "data": {"train": str(folder / "shard"), "sequence_length": 64}}) is None


def refused(folder, kind, text, gff=None, **probes):
    if gff is not None:
        (folder / "genes.gff3").write_text("##gff-version 3\n" + gff)
    with pytest.raises(kind, match=text) as caught:
        opened(tree(folder, **probes))
    assert "--" not in str(caught.value) and "dnapretrain-" not in str(caught.value)


def test_files_that_do_not_fit_are_refused(folder):
    fasta = str(folder / "genome.fa")
    refused(folder, DataError, "'2' .*no contig of the shard.*data.probes.contig_names", GFF.replace("chr1", "2"), genome=fasta)
    refused(folder, DataError, "ends at 1190, but 'chr1'.*genome.fa has 400 bases", GFF.replace("190", "1190"), genome=fasta)
    refused(folder, DataError, "only 0 of 1 complete coding sequences.*data.probes.force", GFF.replace("11\t190", "21\t200"))
    refused(folder, DataError, "no coding sequence.*start_codon, .*nonsense of data.probes.names", GFF.split("\n")[0] + "\n")
    refused(folder, DataError, "no gene, transcript or CDS", "")
    refused(folder, DataError, "genome.fa2: no such file", GFF, genome=str(folder / "genome.fa2"))
    refused(folder, ConfigError, "data.probes.genetic_code 7 is not one of NCBI's", genetic_code=7)
    refused(folder, ConfigError, "has no assembly 'other'.*data.probes.assembly", assembly="other")
    with pytest.raises(DataError, match=r"nothing.gff3"):
        opened(tree(folder, annotation=str(folder / "nothing.gff3")))


def test_settings_that_cannot_be_are_refused(folder):
    with pytest.raises(ConfigError, match=r"window_length = 100 is not 24 to 64 bases"):
        opened(tree(folder, window_length=100))
    with pytest.raises(ConfigError, match=r"data.probes.annotation = .* without data.probes.genome"):
        opened(tree(folder, genome=None))
    small = tree(folder, window_length=None)
    small["data"]["sequence_length"] = 16
    with pytest.raises(ConfigError, match=r"the window of data.probes = 16 is not 24 to 16 bases"):
        opened(small)
    with pytest.raises(ConfigError, match=r"data.probes.names"):
        opened(tree(folder, names=["start"]))


@pytest.mark.parametrize(("kind", "model", "window"), [("kmer", "decoder", 252), ("kmer", "encoder", 252), ("nucleotide", "encoder", 63)])
def test_the_usual_window(folder, kind, model, window):
    settings = tree(folder, window_length=None)
    settings["model"]["kind"], settings["tokenizer"] = model, {"kind": kind}
    settings["data"]["masking"] = {"mlm_probability": 0.15 if model == "encoder" else 0.0}
    config = config_from_dict(settings)
    assert config.probe_window == window
