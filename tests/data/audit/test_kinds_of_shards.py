"""`locate`, `was-seen` and `coverage` on spliced genes and haplotypes, against the place of each base as the shards were made."""

from __future__ import annotations

import io
import json
import random
import time
from collections import Counter

import numpy as np
import odd_shards
import pytest
import slow
import yaml

from dnapretrain.cli import main
from dnapretrain.config_file import load_config
from dnapretrain.data.audit import coverage as coverage_module
from dnapretrain.data.audit import placed
from dnapretrain.data.audit import was_seen as was_seen_module
from dnapretrain.data.audit.coverage import write_coverage
from dnapretrain.data.audit.runs import Steps, open_train
from dnapretrain.data.audit.was_seen import was_seen
from dnapretrain.data.shards import stretches

CONTIGS = {("asm", "c1"): 300, ("asm", "c2"): 180, ("other", "c1"): 240}
KINDS = ("whole", "genes", "haplotypes")
MODEL = {"kind": "decoder", "num_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "ffn_hidden_size": 8}


def make(folder, seed):
    """Documents of each shard, and the texts of the contigs."""
    rng = random.Random(seed)
    texts = {name: "".join(rng.choices("ACGT", k=length)) for name, length in CONTIGS.items()}
    whole = [odd_shards.Document(*name, text, list(range(len(text))), "+", [(0, len(text))]) for name, text in texts.items()]
    documents = {"whole": whole, "genes": odd_shards.spliced(rng, texts, 25), "haplotypes": odd_shards.haplotypes(rng, texts, 2)}
    for name, some in documents.items():
        odd_shards.write(folder / name, some)
    return documents, texts


def make_config(folder, train, **data):
    split = {"by": "block", "block_size": 31, "valid_fraction": 0.2, "test_fraction": 0.1}
    data = {"train": [str(folder / name) for name in train], "sequence_length": 12, "reverse_complement": 0.5, "split": split, **data}
    steps = {"run_dir": str(folder / "run"), "train_steps": 90, "micro_batch_size": 2, "global_batch_size": 8}
    tree = {"data": data, "tokenizer": {"kind": "kmer", "k": 2}, "model": MODEL, "optim": {"lr": 1e-3}, "train": steps}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def bases_read(stream, documents, limit):
    """Of each sample: number of the source, and of each run the document and (strand, place) of each base."""
    read = []
    [part] = stream.parts(1)  # of one length
    for sample in range(limit):
        number, _, runs = part.stream._filler.locate(sample)
        source, rows = stream.sources[number], []
        for segment, start, length, _, reverse, _ in runs:
            if length:
                document = documents[source.shard.prefix.name][int(source.segments.document[segment])]
                start += int(source.segments.start[segment])
                strand = "-" if (document.strand == "-") != reverse else "+"
                rows.append((document, strand, document.places[start : start + length]))
        read.append((number, rows))
    return read


@pytest.mark.parametrize("sampling", ["windows", "packed"])
def test_locate_gives_all_blocks_and_read_the_bases(tmp_path, sampling):
    documents, texts = make(tmp_path, 1)
    stream = open_train(load_config(make_config(tmp_path, KINDS, sampling=sampling)))
    several = 0
    for sample, (_, rows) in enumerate(bases_read(stream, documents, 300)):
        for (locus, bases), (document, strand, places) in zip(stream.read(sample), rows, strict=True):
            assert (locus.assembly, locus.contig, locus.strand) == (document.assembly, document.contig, strand)
            assert (locus.haplotype, locus.start, locus.end) == (document.haplotype, min(places), max(places) + 1)
            text = texts[locus.assembly, locus.contig]
            if document.haplotype:
                assert sorted(place for start, end in locus.blocks for place in range(start, end)) == sorted(set(places))
            else:
                blocks = [text[start:end] for start, end in locus.blocks]
                read = "".join(slow.reverse_complement(block) if strand == "-" else block for block in blocks)
                assert read == bases.tobytes().decode()
            several += len(locus.blocks) > 1
    assert several > 30


def test_loci_of_genes_as_text(tmp_path):
    gene = odd_shards.Document("asm", "c", "ACGTACGTAC", [*range(12, 18), *range(2, 6)][::-1], "-", [(2, 6), (12, 18)])
    odd_shards.write(tmp_path / "g", [gene])
    stream = open_train(load_config(make_config(tmp_path, ["g"], split={}, reverse_complement=0.0)))
    assert [str(locus) for locus in stream.locate(0)] == ["asm:c:13-18,3-6(-)"]


@pytest.mark.parametrize("sampling", ["windows", "packed"])
@pytest.mark.parametrize("train", [KINDS, ("genes",), ("haplotypes",)], ids=["all", "genes", "haplotypes"])
def test_equal_to_counting_every_base(tmp_path, train, sampling, monkeypatch):
    monkeypatch.setattr(coverage_module, "SLICE", 100)
    monkeypatch.setattr(placed, "RUNS_AT_A_TIME", 300)
    monkeypatch.setattr(stretches, "ROWS_AT_A_TIME", 5)
    monkeypatch.setattr(was_seen_module, "STRETCHES_AT_A_TIME", 40)
    documents, _ = make(tmp_path, 2)
    config = load_config(make_config(tmp_path, train, sampling=sampling))
    stream = open_train(config)
    for step in (0, 3, 80):
        read = bases_read(stream, documents, config.samples_after(step))
        check_loci(config, stream, documents, read, step)
        check_coverage(config, stream, documents, read, step)


def inside(locus, document, places):
    assembly, contig, start, end = locus
    return {place for place in places if start <= place < end} if (document.assembly, document.contig) == (assembly, contig) else set()


def check_loci(config, stream, documents, read, step):
    rng, names = random.Random(3), sorted({(document.assembly, document.contig) for some in documents.values() for document in some})
    loci = []
    for _ in range(40):
        assembly, contig = rng.choice(names)
        start = rng.randrange(CONTIGS[assembly, contig])
        loci.append((assembly, contig, start, start + rng.choice([1, 2, 9, 40])))
    prefixes = [source.shard.prefix.name for source in stream.sources]
    answers = was_seen(config, [f"{a}:{c}:{s + 1}-{e}" for a, c, s, e in loci], step)
    for locus, seen in zip(loci, answers, strict=True):
        assembly, contig, start, end = locus
        found = [
            (
                sample,
                number,
                [
                    (document, strand, inside(locus, document, places))
                    for document, strand, places in rows
                    if inside(locus, document, places)
                ],
            )
            for sample, (number, rows) in enumerate(read)
        ]
        found = [row for row in found if row[2]]
        assert seen.any == len(found)
        assert seen.all == sum(set.union(*(places for _, _, places in rows)) == set(range(start, end)) for _, _, rows in found)
        assert seen.strands == {sign: sum(any(strand == sign for _, strand, _ in rows) for _, _, rows in found) for sign in "+-"}
        assert seen.samples == ((found[0][0], found[-1][0]) if found else None)
        held = [set.union(set(), *(inside(locus, document, document.places) for document in documents[name])) for name in prefixes]
        assert seen.absent == end - start - len(set.union(*held))
        samples, names_read = Counter(), Counter()
        for _, number, rows in found:
            samples[prefixes[number]] += 1
            names_read.update({document.haplotype for document, _, _ in rows if document.haplotype})
        shards = {(held.prefix.rsplit("/", 1)[1], held.side): held for held in seen.held}
        assert {name: held.samples for (name, side), held in shards.items() if held.samples} == samples
        assert dict(names_read) == {name: count for held in seen.held for name, count in held.haplotypes.items()}
        for name in prefixes:  # bases, over all sides; what a gene reads twice counts twice
            bases = sum(held.bases for (prefix, _), held in shards.items() if prefix == name)
            expected = 0
            for document in documents[name]:
                there = (
                    [p for p in document.places if start <= p < end] if (document.assembly, document.contig) == (assembly, contig) else []
                )
                expected += len(set(there)) if document.haplotype else len(there)
            assert bases == expected


def check_coverage(config, stream, documents, read, step):
    times = Counter()
    for _, rows in read:
        for document, _, places in rows:
            times.update((document.assembly, document.contig, place) for place in (set(places) if document.haplotype else places))
    output = io.StringIO()
    summary = write_coverage(config, step, output)
    found = {}
    for line in output.getvalue().splitlines():
        name, start, end, count = line.split("\t")
        for place in range(int(start), int(end)):
            assert found.setdefault((*name.split(":"), place), int(count)) == int(count)
    held = set()
    for source in stream.sources:
        for document, start, length in zip(*(column.tolist() for column in vars(source.segments).values()), strict=True):
            of = documents[source.shard.prefix.name][document]
            held |= {(of.assembly, of.contig, place) for place in of.places[start : start + length]}
    assert set(found) == held
    assert {base: count for base, count in found.items() if count} == times
    assert (summary.bases, summary.times_seen) == (len(held), sum(times.values()))
    assert len(summary.sources) == len(stream.sources)


def test_the_output_names_shards_and_haplotypes(tmp_path, capsys):
    make(tmp_path, 5)
    path = str(make_config(tmp_path, KINDS, split={}))
    assert main(["was-seen", path, "asm:c1:20-60"]) == 0
    text = capsys.readouterr().out
    assert f"  shard        {tmp_path}/whole: train 41, read by " in text
    assert " of haplotypes s" in text and text.count("  shard  ") == 3
    assert main(["was-seen", path, "asm:c1:20-60", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert [shard["prefix"].rsplit("/", 1)[1] for shard in row["shards"]] == list(KINDS)
    assert set(row["shards"][2]["haplotypes"]) == {"s0.1", "s0.2", "s1.1", "s1.2"}
    assert main(["coverage", path, "--output", str(tmp_path / "c")]) == 0
    text = capsys.readouterr().out
    assert ("of them spliced" in text and "24 documents, 4 haplotypes" in text) or "12 documents, 4 haplotypes" in text
    stream = open_train(load_config(path))
    sample = next(number for number in range(300) if stream.locate(number)[0].haplotype)
    assert main(["locate", path, "--sample", str(sample), "--json"]) == 0
    [locus] = json.loads(capsys.readouterr().out)["loci"]
    assert locus["haplotype"] in ("s0.1", "s0.2", "s1.1", "s1.2") and locus["blocks"][0][0] == locus["start"]


def test_many_loci_are_answered_together(tmp_path, capsys):
    rng = np.random.default_rng(0)
    text = np.frombuffer(b"ACGT", np.uint8)[rng.integers(0, 4, 2_000_000)].tobytes().decode()
    odd_shards.write(tmp_path / "big", [odd_shards.Document("asm", "c", text, [], "+", [(0, len(text))])])
    path = make_config(tmp_path, ["big"], split={}, sequence_length=500)
    starts = np.sort(rng.integers(0, 1_999_000, 20_000)).tolist()
    (tmp_path / "l.bed").write_text("".join(f"c\t{start}\t{start + 200}\n" for start in starts))
    begun = time.process_time()
    assert main(["was-seen", str(path), "--bed", str(tmp_path / "l.bed"), "--json", "--up-to-step", "400"]) == 0
    assert time.process_time() - begun < 30  # two seconds where nothing else runs
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["start"] for row in rows] == starts
    for row in rows[::2500]:
        [alone] = was_seen(load_config(path), [row["locus"]], 400)
        assert json.loads(json.dumps(alone.to_dict(400))) == row
    assert Steps(load_config(path)).of_sample(0) == 1
