"""Splits: no base on two sides, none lost, the same side on both strands and in every shard."""

import itertools
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import odd_shards
import pytest

from dnapretrain.config import SplitConfig
from dnapretrain.data.sampling.split import SIDES, split_documents
from dnapretrain.data.shards import stretches
from dnapretrain.data.shards.shard import Coordinates, open_shard
from dnapretrain.errors import ConfigError


def make_shard(documents, prefix="shard"):
    """A shard of (assembly, contig, start, end, strand) documents, without bases."""
    assembly, contig, start, end, strand = (list(column) for column in zip(*documents, strict=True))
    start, end = np.array(start, np.int64), np.array(end, np.int64)
    coordinates = Coordinates(contig, start, end, strand, assembly)
    lengths = end - start
    offsets = np.cumsum(lengths) - lengths
    return SimpleNamespace(prefix=Path(prefix), lengths=lengths, offsets=offsets, coordinates=coordinates, digest=prefix)


def random_shard(seed, size=1000):
    rng = np.random.default_rng(seed)
    documents = []
    for contig in ("chr1", "chr2", "chr3"):
        at = 0
        for _ in range(20):
            at += int(rng.integers(0, 50))
            length = int(rng.integers(1, size))
            documents.append(("asm", contig, at, at + length, "+-"[int(rng.integers(2))]))
            at += length
    return make_shard(documents)


def sides_of_bases(shard, split):
    """(contig, position) -> side, checking that each base of each document has exactly one."""
    sides, seen = {}, [np.zeros(length, int) for length in shard.lengths]
    c = shard.coordinates
    for side in SIDES:
        segments = split[side]
        for document, start, length in zip(segments.document, segments.start, segments.length, strict=True):
            assert length > 0
            seen[document][start : start + length] += 1
            for offset in range(start, start + length):
                position = c.end[document] - 1 - offset if c.strand[document] == "-" else c.start[document] + offset
                key = (c.contig[document], int(position))
                assert sides.setdefault(key, side) == side
    assert all((count == 1).all() for count in seen)
    return sides


def test_none_keeps_documents_whole():
    shard = random_shard(0)
    [split] = split_documents([shard], SplitConfig())
    assert split["train"].length.tolist() == shard.lengths.tolist()
    assert split["valid"].bases == split["test"].bases == 0


def test_contigs():
    shard = random_shard(1)
    config = SplitConfig(by="contig", valid_contigs=("chr2",), test_contigs=("asm:chr3",))
    [split] = split_documents([shard], config)
    sides = sides_of_bases(shard, split)
    assert {contig: side for (contig, _), side in sides.items()} == {"chr1": "train", "chr2": "valid", "chr3": "test"}


def test_bed(tmp_path):
    (tmp_path / "valid.bed").write_text("track name=x\n# comment\nchr1\t100\t900\tname\nchr1\t850\t1200\nchr3\t5000\t999999\n\n")
    (tmp_path / "test.bed").write_text("chr1\t1200\t1300\nchr2\t0\t50\n")
    shard = random_shard(2)
    config = SplitConfig(by="bed", valid_bed=tmp_path / "valid.bed", test_bed=tmp_path / "test.bed")
    [split] = split_documents([shard], config)
    for (contig, position), side in sides_of_bases(shard, split).items():
        valid = (contig == "chr1" and 100 <= position < 1200) or (contig == "chr3" and position >= 5000)
        test = (contig == "chr1" and 1200 <= position < 1300) or (contig == "chr2" and position < 50)
        assert side == ("valid" if valid else "test" if test else "train")


def test_blocks_keep_a_locus_on_one_side_in_every_shard_and_strand():
    config = SplitConfig(by="block", block_size=500, valid_fraction=0.2, test_fraction=0.2, seed=3)
    whole = make_shard([("asm", "chr1", 0, 20_000, "+")])
    pieces = make_shard([("asm", "chr1", 130, 7001, "-"), ("asm", "chr1", 7001, 7002, "+"), ("asm", "chr1", 400, 19_999, "-")])
    first, second = split_documents([whole, pieces], config)
    sides = sides_of_bases(whole, first)
    assert all(sides[locus] == side for locus, side in sides_of_bases(pieces, second).items())
    assert all(len({sides["chr1", p] for p in range(block, block + 500)}) == 1 for block in range(0, 20_000, 500))


def test_blocks_are_close_to_their_fractions_and_keyed():
    shard = make_shard([("asm", f"c{number}", 0, 1_000_000, "+") for number in range(10)])

    def split(seed):
        config = SplitConfig(by="block", block_size=1000, valid_fraction=0.1, test_fraction=0.05, seed=seed)
        return split_documents([shard], config)[0]

    a, b = split(1), split(-2)
    assert sum(a[side].bases for side in SIDES) == 10_000_000
    assert 900_000 < a["valid"].bases < 1_100_000
    assert 420_000 < a["test"].bases < 580_000
    assert a["valid"].start.tolist() != b["valid"].start.tolist()
    assert not np.array_equal(a["valid"].start[a["valid"].document == 0], a["valid"].start[a["valid"].document == 1])
    assert split(1)["valid"].start.tolist() == a["valid"].start.tolist()


def test_block_sides_are_fixed_for_good():
    shard = make_shard([("asm", "chr1", 0, 12_000, "+")])
    config = SplitConfig(by="block", block_size=1000, valid_fraction=0.25, test_fraction=0.25)
    [split] = split_documents([shard], config)
    segments = {side: list(zip(split[side].start.tolist(), split[side].length.tolist(), strict=True)) for side in SIDES}
    assert segments == {
        "train": [(1000, 1000), (3000, 2000), (7000, 5000)],
        "valid": [(5000, 2000)],
        "test": [(0, 1000), (2000, 1000)],
    }


@pytest.mark.parametrize(
    "config, message",
    [
        (SplitConfig(by="contig", valid_contigs=("chrX",)), "contig 'chrX', which is in no training shard"),
        (SplitConfig(by="contig", valid_contigs=("chr1",), test_contigs=("chr1",)), "'chr1' is in data.split.valid_contigs and"),
        (SplitConfig(by="contig", valid_contigs=("chr1",), test_contigs=("asm:chr1",)), "chr1:.* both for valid and for test"),
        (SplitConfig(by="block", block_size=10**9, valid_fraction=0.001), "no bases for 'valid'.*valid_fraction"),
        (SplitConfig(by="bed", valid_bed=Path("missing.bed")), "missing.bed cannot be read"),
    ],
)
def test_user_errors(config, message):
    with pytest.raises(ConfigError, match=message):
        split_documents([random_shard(3)], config)


@pytest.mark.parametrize(
    "text, message",
    [
        ("chr9\t0\t10\n", "contig 'chr9', which is in no training shard"),
        ("chr1 0 10\n", "line 1 is not 'contig"),
        ("chr1\t0\t10\nchr1\t10\t10\n", "line 2 has start 10 and end 10"),
        ("chr1\t99999999\t100000000\n", "no bases for 'valid'"),
    ],
)
def test_bed_errors(tmp_path, text, message):
    (tmp_path / "a.bed").write_text(text)
    with pytest.raises(ConfigError, match=message):
        split_documents([random_shard(4)], SplitConfig(by="bed", valid_bed=tmp_path / "a.bed"))


def test_bed_files_may_not_overlap(tmp_path):
    (tmp_path / "a.bed").write_text("chr1\t0\t100\n")
    (tmp_path / "b.bed").write_text("chr1\t99\t200\n")
    with pytest.raises(ConfigError, match="chr1:100-100 is held out"):
        split_documents([random_shard(5)], SplitConfig(by="bed", valid_bed=tmp_path / "a.bed", test_bed=tmp_path / "b.bed"))


# Spliced documents and haplotypes


CONTIGS = {("asm", "chr1"): 400, ("asm", "chr2"): 250, ("other", "chr1"): 300}


def odd(folder, seed):
    """A shard of whole contigs, one of spliced genes, one of haplotypes, and the documents of each."""
    rng = random.Random(seed)
    texts = {name: "".join(rng.choices("ACGT", k=length)) for name, length in CONTIGS.items()}
    whole = [odd_shards.Document(*name, text, list(range(len(text))), "+", [(0, len(text))]) for name, text in texts.items()]
    kinds = {"whole": whole, "genes": odd_shards.spliced(rng, texts, 40), "haplotypes": odd_shards.haplotypes(rng, texts, 3)}
    return {name: (open_shard(odd_shards.write(folder / name, documents)), documents) for name, documents in kinds.items()}


def side_of_places(shard, documents, split):
    """(assembly, contig, place) -> side; each base has one, and a segment's neighbours in its document are on another side."""
    sides = {}
    given = [[None] * len(document.bases) for document in documents]
    for side in SIDES:
        segments = split[side]
        assert segments.document.tolist() == sorted(segments.document.tolist())
        for number, start, length in zip(segments.document.tolist(), segments.start.tolist(), segments.length.tolist(), strict=True):
            assert length > 0
            document = documents[number]
            for offset in range(start, start + length):
                assert given[number][offset] is None
                given[number][offset] = side
                assert sides.setdefault((document.assembly, document.contig, document.places[offset]), side) == side
    assert all(None not in row for row in given)
    return sides


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("by", ["block", "bed", "contig"])
def test_a_base_of_any_kind_of_shard_is_on_the_side_of_its_place(tmp_path, by, seed):
    shards = odd(tmp_path, seed)
    (tmp_path / "v.bed").write_text("asm:chr1\t17\t60\nchr2\t100\t101\nasm:chr1\t60\t61\nasm:chr1\t222\t390\n")
    (tmp_path / "t.bed").write_text("asm:chr1\t61\t71\nother:chr1\t0\t40\n")
    config = {
        "block": SplitConfig(by="block", block_size=23, valid_fraction=0.3, test_fraction=0.2, seed=seed),
        "bed": SplitConfig(by="bed", valid_bed=tmp_path / "v.bed", test_bed=tmp_path / "t.bed"),
        "contig": SplitConfig(by="contig", valid_contigs=("chr2",), test_contigs=("other:chr1",)),
    }[by]
    splits = split_documents([shard for shard, _ in shards.values()], config)
    found = [side_of_places(*kind, split) for kind, split in zip(shards.values(), splits, strict=True)]
    assert set(found[0].values()) == set(SIDES)
    for sides in found[1:]:
        assert len(sides) > 500
        assert sides == {place: found[0][place] for place in sides}


def test_segments_of_spliced_documents_are_as_long_as_sides_allow(tmp_path):
    """Blocks that follow each other on one side stay one segment, across introns too."""
    shards = odd(tmp_path, 11)
    shard, documents = shards["genes"]
    config = SplitConfig(by="block", block_size=60, valid_fraction=0.3)
    split = split_documents([shards["whole"][0], shard], config)[1]
    sides = side_of_places(shard, documents, split)
    for number, document in enumerate(documents):
        expected = [sides[document.assembly, document.contig, place] for place in document.places]
        changes = 1 + sum(a != b for a, b in itertools.pairwise(expected))
        assert sum(int((split[side].document == number).sum()) for side in SIDES) == changes
    assert split_documents([shard], SplitConfig())[0]["train"].bases == len(shard.bases)


@pytest.mark.parametrize("seed", range(4))
def test_stretches_equal_places_base_by_base(tmp_path, seed, monkeypatch):
    monkeypatch.setattr(stretches, "ROWS_AT_A_TIME", 7)
    rng = np.random.default_rng(seed)
    for shard, documents in odd(tmp_path, seed).values():
        document = rng.integers(0, len(documents), 300)
        edges = np.sort(rng.integers(0, shard.lengths[document] + 1, (2, 300)), axis=0)
        found = stretches.find_stretches(shard.coordinates, document, *edges)
        for number, (of, first, last) in enumerate(zip(document, *edges, strict=True)):
            rows = np.flatnonzero(found.query == number)
            places = documents[of].places[first:last]
            held = [range(found.start[row], found.end[row]) for row in rows]
            if documents[of].strand == "-":
                held = [some[::-1] for some in held]
            if documents[of].haplotype:
                assert [place for some in held for place in some] == sorted(set(places))
            else:
                assert [place for some in held for place in some] == places
                assert [documents[of].places[found.offset[row]] for row in rows] == [some[0] for some in held]
