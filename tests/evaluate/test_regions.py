"""Held-out bits per base by class of bases: against a slow walk base by base, for every kind of tokenizer, shard and strand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import training
from streams import make_data, tokenizer_of

from dnapretrain.config import RegionsConfig, TokenizerConfig
from dnapretrain.data.genes.extract import extract
from dnapretrain.data.genes.gene_regions import ExtractSettings
from dnapretrain.data.sampling.region_groups import open_regions
from dnapretrain.data.sampling.samples import SampleStream
from dnapretrain.data.sampling.sources import Source
from dnapretrain.data.sampling.split import whole_documents
from dnapretrain.data.shards.preprocess import preprocess
from dnapretrain.data.shards.shard import open_shard
from dnapretrain.data.tokens.bpe import train_bpe
from dnapretrain.data.tokens.tokenizers import build_tokenizer
from dnapretrain.errors import ConfigError, DataError
from dnapretrain.evaluate.regions import num_region_sums, region_lines, region_sums, summarise_regions

CLASSES = ("repeats", "CDS", "UTR", "exon", "intron")
WINDOW = 50
GENES = """
chr1 . gene 101 700 . + . ID=g
chr1 . mRNA 101 700 . + . ID=m;Parent=g
chr1 . exon 101 300 . + . Parent=m
chr1 . exon 401 700 . + . Parent=m
chr1 . CDS 155 300 . + 0 ID=p;Parent=m
chr1 . CDS 401 577 . + 1 ID=p;Parent=m
chr1 . gene 901 1300 . - . ID=h
chr1 . mRNA 901 1300 . - . ID=k;Parent=h
chr1 . exon 901 1013 . - . Parent=k
chr1 . exon 1102 1300 . - . Parent=k
chr1 . CDS 950 1013 . - 1 ID=q;Parent=k
chr1 . CDS 1102 1250 . - 0 ID=q;Parent=k
"""


@pytest.fixture(scope="module")
def genome(tmp_path_factory) -> Path:
    """A folder with asm.* (base shard), spliced.* (its transcripts, one of the minus strand), genes.gff3, repeats.bed."""
    folder = tmp_path_factory.mktemp("genome")
    rng = np.random.default_rng(3)
    bases = rng.choice(list("ACGT"), 2000, p=[0.35, 0.15, 0.2, 0.3])
    bases[[60, 250, 251, 252, 1120]] = list("NRYKN")
    text = "".join(bases)
    text = text[:450] + text[450:650].lower() + text[650:1200] + text[1200:1290].lower() + text[1290:]
    (folder / "asm.fa").write_text(f">chr1\n{text[:1500]}\n>chr2\n{text[1500:]}\n")
    preprocess([folder / "asm.fa"], folder / "asm")
    rows = ["\t".join(line.split(None, 8)) for line in GENES.strip().splitlines()]
    (folder / "genes.gff3").write_text("##gff-version 3\n" + "\n".join(rows) + "\n")
    (folder / "repeats.bed").write_text("chr1\t520\t555\nchr1\t1210\t1234\nchr2\t7\t33\n")
    extract(folder / "asm", folder / "genes.gff3", folder / "spliced", ExtractSettings(("transcript",), spliced=True, force=True))
    train_bpe([folder / "asm"], folder / "bpe.json", vocab_size=60)
    return folder


def regions_of(folder: Path) -> RegionsConfig:
    files = {"repeats": {"path": str(folder / "repeats.bed"), "skip_missing_contigs": True}, "genes": str(folder / "genes.gff3")}
    return RegionsConfig(files=files, soft_mask=True, gc_edges=(0.3, 0.4), gc_window=WINDOW, assembly=True)


def stream_of(folder: Path, prefix: str, tokenizer: str, masked: bool, **settings) -> SampleStream:
    if tokenizer == "bpe":
        built = build_tokenizer(TokenizerConfig(kind="bpe", file=folder / "bpe.json", add_eos=masked))
    else:
        kind, _, k = tokenizer.partition("-")
        built = tokenizer_of(
            kind, k=int(k or 6) if kind != "aido_dna" else 1, base_order={"nt_v2": "ATCG", "aido_dna": "AGCT"}.get(kind, "ACGT")
        )
    masking = {"masking": {"mlm_probability": 0.4}} if masked else {}
    shard = open_shard(folder / prefix)
    stream = SampleStream("held", [Source(shard, whole_documents(shard))], make_data(sequence_length=40, **masking, **settings), built)
    open_regions(regions_of(folder), {"held": stream})
    return stream


def slow_classes(folder: Path) -> dict[tuple[str, int], str]:
    """The class of each base of the genome: the rows one by one, from the last in precedence to the first."""
    found = {("chr1", at): "intergenic" for at in range(1500)} | {("chr2", at): "not annotated" for at in range(500)}
    for kind, role in (("intron", "mRNA"), ("UTR", "exon"), ("CDS", "CDS")):
        for fields in (line.split() for line in GENES.strip().splitlines()):
            if fields[2] == role:
                found |= {(fields[0], at): kind for at in range(int(fields[3]) - 1, int(fields[4]))}
    for contig, start, end in (line.split() for line in (folder / "repeats.bed").read_text().splitlines()):
        found |= {(contig, at): "repeats" for at in range(int(start), int(end))}
    return found


def slow_labels(folder: Path, stream: SampleStream, sample: int) -> list[tuple[str, ...]]:
    """(class, case, GC, assembly) of each base that a sample reads, from `read` and the text of the documents."""
    classes, [source], labels = slow_classes(folder), stream.sources, []
    documents = {}
    for number in range(len(source.shard.lengths)):
        at, size = int(source.shard.offsets[number]), int(source.shard.lengths[number])
        where = source.shard.coordinates.pieces(number, 0, size)
        order = [(range(a, b) if source.shard.coordinates.strand[number] == "+" else range(b - 1, a - 1, -1)) for a, b in where]
        places = [(source.shard.coordinates.contig[number], base) for piece in order for base in piece]
        documents[number] = places, source.shard.bases[at : at + size].tobytes().decode()
    for locus, bases in stream.read(sample):
        text = bases.tobytes().decode()
        [(number, start)] = [
            (number, start)
            for number, (places, whole) in documents.items()
            for start in range(len(whole))
            if whole.startswith(text, start) and places[start][0] == locus.contig and locus.start <= places[start][1] < locus.end
        ]
        places, whole = documents[number]
        for at, letter in enumerate(text, start):
            window = whole[at // WINDOW * WINDOW :][:WINDOW].upper()
            share = sum(map(window.count, "GC")) / max(1, sum(map(window.count, "ACGT")))
            gc = "< 30 %" if share < 0.3 else "30-40 %" if share < 0.4 else ">= 40 %"
            labels.append((classes[places[at]], "soft-masked" if letter.islower() else "upper case", gc, "asm"))
    return labels


def slow_sums(folder: Path, stream: SampleStream, losses: np.ndarray, batch, masked: bool) -> dict[tuple[str, str], list[float]]:
    """Grouping and class -> [bits, weight, bases], base by base."""
    tokenizer, found = stream.tokenizer, {}
    for sample in range(stream.num_samples):
        labels, at = slow_labels(folder, stream, sample), 0
        text = "".join(bases.tobytes().decode() for _, bases in stream.read(sample)).upper()
        tokens = batch.labels[sample] if masked else np.append(batch.tokens[sample, :1], batch.labels[sample])
        for place, token in enumerate(tokens.tolist(), 0 if masked else -1):
            word = tokenizer.tokens[token]
            if word in tokenizer.vocabulary.specials and token != tokenizer.unk_id:
                continue
            if token != tokenizer.unk_id:
                assert text[at : at + len(word)] == word
                size = len(word)
            elif tokenizer.vocabulary.singles:
                size = next(size for size in range(1, len(text)) if text[at + size : at + size + 1] in (*"ACGTN", ""))
            else:
                size = 1 if tokenizer.bpe else tokenizer.k
            weight = float(batch.loss_mask[sample, place]) if place >= 0 else 0.0
            for label in labels[at : at + size] if weight else ():
                for grouping, name in zip(("class", "case", "gc", "assembly"), label, strict=True):
                    sums = found.setdefault((grouping, name), [0.0, 0.0, 0])
                    sums[0] += losses[sample, place] / size / math.log(2) * weight
                    sums[1] += weight
                    sums[2] += 1
            at += size
        assert at == len(text)
    return found


TOKENIZERS = ["nucleotide", "kmer-3", "kmer-6", "nt_v2", "aido_dna", "bpe"]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("prefix", ["asm", "spliced"])
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_equals_a_slow_walk(genome, tokenizer, prefix, masked):
    stream = stream_of(genome, prefix, tokenizer, masked, lowercase_weight=0.25)
    batch = stream.batch(np.arange(stream.num_samples))
    losses = np.random.default_rng(1).uniform(0.1, 3, batch.labels.shape)
    first = None if masked else torch.from_numpy(batch.tokens[:, 0])
    labels, mask = torch.from_numpy(batch.labels), torch.from_numpy(batch.loss_mask)
    sums = region_sums(stream.regions, np.arange(stream.num_samples), first, labels, torch.from_numpy(losses), mask, "token")
    assert len(sums) == num_region_sums(stream.regions)
    found = summarise_regions(stream.regions, sums.tolist())
    slow = slow_sums(genome, stream, losses, batch, masked)
    assert {(grouping, name) for grouping, classes in found.items() for name in classes} == set(slow)
    for (grouping, name), (bits, weight, bases) in slow.items():
        values = found[grouping][name]
        assert values["num_bases"] == bases
        assert values["weight"] == pytest.approx(weight)
        assert values["bits_per_base"] == pytest.approx(bits / weight)
    assert len(slow) > 8


@pytest.mark.parametrize("settings", [{"sampling": "packed"}, {"sampling": "packed", "document_attention": True}])
@pytest.mark.parametrize("tokenizer", ["nucleotide", "kmer-3"])
def test_packed_samples(genome, tokenizer, settings):
    stream = stream_of(genome, "spliced", tokenizer, False, **settings)
    batch = stream.batch(np.arange(stream.num_samples))
    ids, first = np.arange(stream.num_samples), torch.from_numpy(batch.tokens[:, 0])
    losses = np.ones(batch.labels.shape)
    arguments = (torch.from_numpy(array) for array in (batch.labels, losses, batch.loss_mask))
    found = summarise_regions(stream.regions, region_sums(stream.regions, ids, first, *arguments, "token").tolist())
    slow = slow_sums(genome, stream, losses, batch, False)
    assert {name: values["num_bases"] for name, values in found["class"].items()} == {
        name: sums[2] for (grouping, name), sums in slow.items() if grouping == "class"
    }


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_uniform_over_bases_reads_two_and_sums_are_the_total(genome, tokenizer):
    stream = stream_of(genome, "asm", tokenizer, False, lowercase_weight=0.25)
    batch = stream.batch(np.arange(stream.num_samples))
    text = stream.tokenizer.tokens
    bases = np.array([[len(text[token]) for token in row] for row in batch.labels], np.float64)
    labels, mask = torch.from_numpy(batch.labels), torch.from_numpy(batch.loss_mask)
    ids, first = np.arange(stream.num_samples), torch.from_numpy(batch.tokens[:, 0])

    def found(losses, loss="token"):
        return summarise_regions(
            stream.regions, region_sums(stream.regions, ids, first, labels, torch.from_numpy(losses), mask, loss).tolist()
        )

    uniform = found(bases * math.log(4))
    assert {round(values["bits_per_base"], 12) for classes in uniform.values() for values in classes.values()} == {2.0}
    losses = np.random.default_rng(2).uniform(0.1, 3, bases.shape)
    total = (losses * batch.loss_mask).sum() / (bases * batch.loss_mask).sum() / math.log(2)
    for classes in found(losses).values():
        weight = sum(values["weight"] for values in classes.values())
        assert sum(values["bits_per_base"] * values["weight"] for values in classes.values()) / weight == pytest.approx(total, abs=1e-9)
        assert weight == pytest.approx((bases * batch.loss_mask).sum())
    if tokenizer.startswith("kmer"):  # train.loss=nucleotide gives nats per base
        by_base, by_token = found(losses / bases, "nucleotide"), found(losses)
        assert by_base["class"]["CDS"]["bits_per_base"] == pytest.approx(by_token["class"]["CDS"]["bits_per_base"])


def evaluated(env, store, tree):
    trainer, _, log = training.begin(env, store, tree)
    return trainer.evaluate()["valid"], log


@pytest.mark.parametrize(
    "tokenizer",
    [{"kind": "nucleotide"}, {"kind": "kmer", "k": 3}, {"kind": "kmer", "k": 3, "loss": "nucleotide"}],
    ids=["1", "3", "3-nucleotide"],
)
def test_every_layout_gives_the_same_classes(ranks, tiny_config, tmp_path, tokenizer):
    """The model's own losses, from one rank to pipeline stages and data-parallel ranks; the sums are the set's bits per base."""
    bed = tmp_path / "some.bed"
    bed.write_text("chr3\t100\t700\nchr3\t2000\t2311\n")
    regions = {"files": {"some": str(bed)}, "soft_mask": True, "gc_edges": [0.5], "gc_window": 100}
    changes = {"data.regions": regions, "train.eval_samples": 21, "tokenizer.kind": tokenizer["kind"], "tokenizer.k": tokenizer.get("k", 6)}
    changes["train.loss"] = tokenizer.get("loss", "token")
    [(alone, log)] = ranks.run(1, evaluated, tree=tiny_config(**changes))
    assert "regions: some: " in log
    assert set(alone.regions) == {"class", "case", "gc"} and set(alone.regions["class"]) == {"some", "not annotated"}
    for classes in alone.regions.values():
        weight = sum(values["weight"] for values in classes.values())
        bits = sum(values["bits_per_base"] * values["weight"] for values in classes.values()) / weight
        assert bits == pytest.approx(alone.bits_per_base, abs=1e-6)
        assert sum(values["num_bases"] for values in classes.values()) == alone.num_bases
    if tokenizer["kind"] == "kmer" and "loss" in tokenizer:
        return  # the layouts below are those of any loss
    for world_size, layout in ((2, {"parallel.tp": 2}), (4, {"parallel.pp": 2})):
        for result, _ in ranks.run(world_size, evaluated, tree=tiny_config(f"{world_size}", **layout, **changes)):
            for grouping, classes in alone.regions.items():
                for name, values in classes.items():
                    assert result.regions[grouping][name] == pytest.approx(values, abs=1e-6)


def test_names_that_do_not_fit(genome, tmp_path):
    """Stated, never guessed: no contig, two assemblies, an assembly that is not there."""
    shard = open_shard(genome / "asm")
    tokenizer, sources = tokenizer_of("nucleotide"), [Source(shard, whole_documents(shard))]

    def opened(**file):
        stream = SampleStream("held", sources, make_data(sequence_length=40), tokenizer)
        open_regions(RegionsConfig(files={"genes": {"path": str(path), **file}}), {"held": stream})
        return stream.regions

    path = tmp_path / "a.gff3"
    path.write_text((genome / "genes.gff3").read_text().replace("chr1\t", "1\t"))
    with pytest.raises(DataError, match=r"'1' .1 of 1 names. is no contig.*data\.regions\.files\.genes\.contig_names MAP"):
        opened()
    assert opened(contig_names="chr").report[0]["names"] == 1
    path.write_text((genome / "genes.gff3").read_text() + "chr9\t.\tgene\t1\t9\t.\t+\t.\tID=z\n")
    with pytest.raises(DataError, match=r"'chr9'.*skip_missing_contigs=true"):
        opened()
    assert opened(skip_missing_contigs=True).report[0]["names_left_out"] == ["chr9"]
    with pytest.raises(ConfigError, match=r"genes\.assembly = hg38 is no assembly of the held-out sets. Known: asm"):
        opened(assembly="hg38")
    (tmp_path / "other.fa").write_text(">chr1\nACGTACGTACGTTTGACCACGT\n")
    preprocess([tmp_path / "other.fa"], tmp_path / "other")
    other = open_shard(tmp_path / "other")
    sources.append(Source(other, whole_documents(other)))
    path.write_text((genome / "genes.gff3").read_text())
    with pytest.raises(ConfigError, match=r"'chr1' is a contig of 2 assemblies: asm, other. Set data.regions.files.genes.assembly"):
        opened()
    assert opened(assembly="asm").report[0]["names"] == 1
    path = tmp_path / "a.bed"
    path.write_text("asm:chr1\t0\t9\nother:chr1\t0\t9\n")
    assert opened().report[0]["names"] == 2


def test_the_table(genome):
    regions = {
        "class": {
            "CDS": {"bits_per_base": 1.9, "num_bases": 30, "weight": 30.0},
            "intron": {"bits_per_base": 2.1, "num_bases": 10, "weight": 10.0},
        }
    }
    assert list(region_lines(regions)) == ["  class | CDS 1.9000 (75.0%) | intron 2.1000 (25.0%)"]
    assert list(region_lines(None)) == []
