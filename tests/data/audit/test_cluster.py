"""Clusters of homologous pieces, and the split by them: against plain sets and searches, on planted copies and on real genomes."""

from __future__ import annotations

import itertools
import os
import random
from collections import Counter
from pathlib import Path

import numpy as np
import odd_shards
import pytest
import slow
import yaml

from dnapretrain import _core
from dnapretrain.cli import main
from dnapretrain.config import SplitConfig
from dnapretrain.config_file import load_config
from dnapretrain.data.audit import cluster as cluster_module
from dnapretrain.data.audit.cluster import ClusterSettings, HomologyClusters, connected, cut_pieces, shared_hashes, sketch_tiles
from dnapretrain.data.audit.homology import Leakage, SketchSettings
from dnapretrain.data.sampling.clusters import choose_clusters, read_clusters
from dnapretrain.data.sampling.split import SIDES, split_documents
from dnapretrain.data.shards.preprocess import preprocess
from dnapretrain.data.shards.shard import open_shard
from dnapretrain.errors import ConfigError, DataError

MODEL = {"kind": "decoder", "num_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "ffn_hidden_size": 8}


def random_bases(rng, length):
    return "".join(rng.choices("ACGT", k=length))


def mutated(rng, bases, rate):
    return "".join(rng.choice("ACGT") if rng.random() < rate else base for base in bases)


def make_shard(folder, name, records):
    (folder / f"{name}.fa").write_text("".join(f">{contig}\n{bases}\n" for contig, bases in records.items()))
    preprocess([folder / f"{name}.fa"], folder / name)
    return folder / name


def sketch(bases, k, scale):
    whole = (np.array([value], np.int64) for value in (0, len(bases), len(bases)))
    return set(_core.sketch(np.frombuffer(bases.encode(), np.uint8), *whole, k=k, scale=scale)[0].tolist())


def make_config(folder, train, clusters=None, **split):
    by = {"by": "cluster", "clusters": str(clusters)} if clusters else {"by": "block"}
    data = {"train": [str(prefix) for prefix in train], "sequence_length": 32, "split": {"valid_fraction": 0.15, **by, **split}}
    steps = {"run_dir": str(folder / "run"), "train_steps": 5, "micro_batch_size": 1, "global_batch_size": 1}
    tree = {"data": data, "tokenizer": {"kind": "nucleotide"}, "model": MODEL, "optim": {"lr": 1e-3}, "train": steps}
    (folder / "c.yaml").write_text(yaml.safe_dump(tree))
    return folder / "c.yaml"


# ---- the steps, each against a plain one -----------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_tiles_have_the_kmers_of_all_documents_that_lie_on_them(tmp_path, seed):
    rng = random.Random(seed)
    texts = {("a", "c1"): random_bases(rng, 300), ("a", "c2"): random_bases(rng, 170), ("b", "c1"): random_bases(rng, 90)}
    kinds = [
        [odd_shards.Document(*name, text, list(range(len(text))), "+", [(0, len(text))]) for name, text in texts.items()],
        odd_shards.spliced(rng, texts, 20),
        odd_shards.haplotypes(rng, texts, 2),
    ]
    prefixes = [odd_shards.write(tmp_path / str(number), documents) for number, documents in enumerate(kinds)]
    settings = ClusterSettings(k=11, scale=2, piece=80)
    tiles = sketch_tiles([open_shard(prefix) for prefix in prefixes], settings)
    expected = {}
    for document in itertools.chain(*kinds):
        for at, place in enumerate(document.places):
            # A k-mer belongs to the tile where its first base lies, as the document is stored.
            held = expected.setdefault((document.assembly, document.contig, place // 10), set())
            held |= sketch(document.bases[at : at + 11], 11, 2) if at + 11 <= len(document.bases) else set()
    names = [(*tiles.contigs[contig], number) for contig, number in zip(tiles.contig.tolist(), tiles.number.tolist(), strict=True)]
    found = {name: set() for name in names}
    for value, tile in zip(tiles.hash.tolist(), tiles.tile.tolist(), strict=True):
        assert value not in found[names[tile]]
        found[names[tile]].add(value)
    assert found == expected
    first = {}
    for value, tile in zip(tiles.hash.tolist(), tiles.tile.tolist(), strict=True):
        first[value] = min(tile, first.get(value, tile))
    assert tiles.first_holder.tolist() == [first[value] for value in tiles.hash.tolist()]


@pytest.mark.parametrize(("most", "at_a_time"), [(16, 1 << 20), (3, 1 << 20), (3, 11)])
def test_shared_kmers_equal_plain_counting(most, at_a_time, monkeypatch):
    monkeypatch.setattr(cluster_module, "MOST_HOLDERS", most)
    monkeypatch.setattr(cluster_module, "PAIRS_AT_A_TIME", at_a_time)
    rng = random.Random(most)
    holders = {value: sorted(rng.sample(range(30), rng.randint(1, 8))) for value in range(200)}
    rows = [(value, piece) for value, pieces in holders.items() for piece in pieces]
    low, high, count, frequent = shared_hashes(np.array([row[0] for row in rows], np.uint64), np.array([row[1] for row in rows]))
    expected = Counter(pair for pieces in holders.values() for pair in itertools.combinations(pieces, 2) if pair[0] in pieces[:most])
    assert {(a, b): n for a, b, n in zip(low.tolist(), high.tolist(), count.tolist(), strict=True)} == expected
    assert frequent == sum(len(pieces) > most for pieces in holders.values())
    assert shared_hashes(np.zeros(0, np.uint64), np.zeros(0, np.int64))[0].size == 0


def test_clusters_are_what_links_connect():
    rng = random.Random(0)
    for _ in range(50):
        links = [(rng.randrange(40), rng.randrange(40)) for _ in range(rng.randint(0, 40))]
        found = connected(40, *(np.array(column, np.int64) for column in (zip(*links, strict=True) if links else ([], []))))
        reached = [{piece} for piece in range(40)]
        for _ in range(40):
            for a, b in links:
                reached[a] = reached[b] = reached[a] | reached[b]
        assert all((found[a] == found[b]) == (min_of(reached, a) == min_of(reached, b)) for a in range(40) for b in range(40))
        assert list(dict.fromkeys(found.tolist())) == list(range(1, found.max() + 1))


def min_of(reached, piece):
    """The least piece of the component, by a search of its own."""
    seen, ahead = {piece}, [piece]
    while ahead:
        at = ahead.pop()
        for other in range(len(reached)):
            if other not in seen and (other in reached[at] or at in reached[other]):
                seen.add(other)
                ahead.append(other)
    return min(seen)


def test_sides_are_full_within_the_smallest_cluster_left_to_training():
    rng = np.random.default_rng(0)
    for seed in range(30):
        bases = rng.integers(1, 1000, 60)
        bases[rng.integers(60)] = 20_000
        sides = choose_clusters(bases, (0.1, 0.05), seed)
        left = bases[sides == 0].min()
        for side, fraction in ((1, 0.1), (2, 0.05)):
            asked = int(bases.sum() * fraction)
            assert asked - left < bases[sides == side].sum() <= asked
    assert choose_clusters(bases, (0.1, 0.05), 1).tolist() == choose_clusters(bases, (0.1, 0.05), 1).tolist()
    assert choose_clusters(bases, (0.1, 0.05), 1).tolist() != choose_clusters(bases, (0.1, 0.05), 2).tolist()


def test_a_second_genome_is_cut_where_the_first_one_is(tmp_path):
    rng = random.Random(1)
    first = random_bases(rng, 60_000)
    second = slow.reverse_complement(
        mutated(rng, random_bases(rng, 3330) + first[1234:30_000] + random_bases(rng, 5000) + first[30_000:], 0.001)
    )
    shards = [open_shard(make_shard(tmp_path, name, {"c": text})) for name, text in (("a", first), ("b", second))]
    settings = ClusterSettings(scale=20, piece=10_000)
    tiles = sketch_tiles(shards, settings)
    piece = cut_pieces(tiles, settings)
    assert (np.diff(piece) >= 0).all() and piece[0] == 0
    cuts = {
        name: [int(tiles.start[at]) for at in np.flatnonzero(np.diff(piece, prepend=-1)) if tiles.contigs[tiles.contig[at]][0] == name]
        for name in "ab"
    }
    assert cuts["a"] == list(range(0, 60_000, 10_000))
    length = len(second)
    homologous = sorted(length - (3330 + at - 1234 + (5000 if at >= 30_000 else 0)) for at in (10_000, 20_000, 40_000, 50_000))
    assert all(min(abs(cut - at) for cut in cuts["b"]) <= settings.tile for at in homologous)


# ---- the split -------------------------------------------------------------------------------


@pytest.fixture
def family(tmp_path):
    """Two genomes, the second a changed copy on the other strand; genes and haplotypes of the first; a genome of its own."""
    rng = random.Random(7)
    first, repeat = random_bases(rng, 60_000), random_bases(rng, 6000)
    first = first[:20_000] + repeat + first[20_000:45_000] + mutated(rng, repeat, 0.005) + first[45_000:]
    texts = {("a", "c"): first}
    copy = slow.reverse_complement(mutated(rng, first[777:], 0.002))
    shards = [make_shard(tmp_path, "a", {"c": first}), make_shard(tmp_path, "b", {"c": copy, "new": random_bases(rng, 30_000)})]
    edges = [sorted(rng.sample(range(60_000), 6)) for _ in range(20)]
    genes = []
    for edge in edges:
        blocks = list(zip(edge[::2], (min(start + 1500, end) for start, end in zip(edge[::2], edge[1::2], strict=True)), strict=True))
        places = [place for start, end in blocks for place in range(start, end)]
        genes.append(odd_shards.Document("a", "c", "".join(first[place] for place in places), places, "+", blocks))
    shards.append(odd_shards.write(tmp_path / "genes", genes))
    some = [odd_shards.haplotype(rng, "a", "c", first, 0, 15_000, "s.1")]
    shards.append(odd_shards.write(tmp_path / "haplotypes", some))
    return shards, texts, {"genes": genes, "haplotypes": some}


def test_a_cluster_is_on_one_side_in_every_kind_of_shard(family, tmp_path):
    prefixes, _, documents = family
    assert main(["cluster", *map(str, prefixes), "--output", str(tmp_path / "c.bed"), "--scale", "20", "--piece", "5000"]) == 0
    clusters = read_clusters(tmp_path / "c.bed")
    shards = [open_shard(prefix) for prefix in prefixes]
    config = SplitConfig(by="cluster", clusters=tmp_path / "c.bed", valid_fraction=0.2, test_fraction=0.1, seed=3)
    splits = split_documents(shards, config)
    side_of, total = {}, Counter()
    for shard, split in zip(shards, splits, strict=True):
        assert sum(split[side].bases for side in SIDES) == len(shard.bases)
        for side in SIDES:
            total[side] += split[side].bases
            for document, start, length in zip(*(column.tolist() for column in vars(split[side]).values()), strict=True):
                known = documents.get(shard.prefix.name)
                where = (shard.coordinates.assembly[document], shard.coordinates.contig[document])
                places = known[document].places[start : start + length] if known else range(start, start + length)
                for place in places:
                    of = next(cluster for first, last, cluster in clusters.intervals[where] if first <= place < last)
                    assert side_of.setdefault(of, side) == side
    assert set(side_of.values()) == set(SIDES)
    bases = sum(len(shard.bases) for shard in shards)
    assert 0.1 * bases < total["valid"] <= 0.2 * bases and 0 < total["test"] <= 0.1 * bases


def test_copies_leak_from_blocks_and_not_from_clusters(family, tmp_path, capsys):
    prefixes = family[0][:2]
    path = make_config(tmp_path, prefixes, block_size=5000)
    assert main(["cluster", str(path), "--output", str(tmp_path / "c.bed"), "--scale", "10", "--piece", "5000"]) == 0
    text = capsys.readouterr().out
    assert "clusters    " in text and "pieces      " in text
    how = SketchSettings(31, 1, 1000)
    before = Leakage(load_config(path), how, 0.5).report()["sets"]["valid"]
    after = Leakage(load_config(make_config(tmp_path, prefixes, tmp_path / "c.bed")), how, 0.5).report()["sets"]["valid"]
    assert before["hashes_share"] > 0.4 and before["leaked_bases_share"] > 0.5
    assert after["hashes_share"] < 0.02 and after["leaked_bases"] == 0 and after["bases"] > 10_000


def test_links_are_those_of_plain_sets(family, tmp_path):
    settings = ClusterSettings(scale=10, piece=4000, link=0.3)
    found = HomologyClusters(family[0][:2], settings)
    (tmp_path / "c.bed").write_text("".join(found.lines()))
    shards = {name: open_shard(prefix) for name, prefix in zip("ab", family[0], strict=False)}
    pieces = []
    for (assembly, contig), rows in read_clusters(tmp_path / "c.bed").intervals.items():
        shard = shards[assembly]
        document = shard.coordinates.contig.index(contig)
        offset = int(shard.offsets[document])
        text = shard.bases[offset : offset + int(shard.lengths[document])].tobytes().decode()
        assert rows[0][0] == 0 and rows[-1][1] == len(text) and all(a[1] == b[0] for a, b in itertools.pairwise(rows))
        pieces += [(cluster, sketch(text[start : end + 30], 31, 10)) for start, end, cluster in rows]
    linked = [
        (i, j)
        for (i, (_, a)), (j, (_, b)) in itertools.combinations(enumerate(pieces), 2)
        if min(len(a), len(b)) >= 10 and len(a & b) >= 0.3 * min(len(a), len(b))
    ]
    assert len(linked) == found.report()["links"] > 10
    expected = connected(len(pieces), *(np.array(column) for column in zip(*linked, strict=True)))
    assert [cluster for cluster, _ in pieces] == expected.tolist()


# ---- mistakes --------------------------------------------------------------------------------


def test_a_stale_or_damaged_file_is_refused(family, tmp_path):
    prefixes = family[0][:2]
    path, config = tmp_path / "c.bed", SplitConfig(by="cluster", clusters=tmp_path / "c.bed", valid_fraction=0.1)
    shards = [open_shard(prefix) for prefix in prefixes]
    with pytest.raises(ConfigError, match=r"c.bed cannot be read"):
        split_documents(shards, config)
    whole = "".join(HomologyClusters(prefixes, ClusterSettings()).lines())
    path.write_text("".join(HomologyClusters(prefixes[:1], ClusterSettings()).lines()))
    with pytest.raises(ConfigError, match=r"was not made for shard .*/b as it is now.*Run dnapretrain cluster again"):
        split_documents(shards, config)
    lines = whole.splitlines(keepends=True)
    for text, message in (
        ("".join(lines[1:]), "is not a cluster file"),
        ("".join(lines[:-1]), "cut or damaged"),
        ("".join([lines[0], *lines[2:], lines[1]]), "cut or damaged"),
        (whole.replace('"format_version": 1', '"format_version": 9'), "cluster format 9"),
        (lines[0][:60] + "\n", "cut or damaged"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            split_documents(shards, config)
    contig, _, rest = lines[1].partition("\t")
    path.write_text("".join([lines[0], f"other{contig}\t{rest}", *lines[2:]]))
    with pytest.raises(DataError, match="holds bases that are in no piece"):
        split_documents(shards, config)
    path.write_text(whole)
    with pytest.raises(ConfigError, match=r"no bases for 'valid'. Change data.split.valid_fraction: no cluster is that small"):
        split_documents(shards, SplitConfig(by="cluster", clusters=path, valid_fraction=1e-6))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--k", "9"], "--k = 9"),
        (["--scale", "0"], "--scale = 0"),
        (["--link", "0"], "--link = 0"),
        (["--piece", "1999"], "--piece = 1999 is under 2000"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, arguments, message):
    prefix = make_shard(tmp_path, "a", {"c": "ACGT" * 100})
    assert main(["cluster", str(prefix), "--output", str(tmp_path / "c.bed"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert main(["cluster", str(prefix), str(prefix), "--output", str(tmp_path / "c.bed")]) == 2
    assert "given twice" in capsys.readouterr().err and not (tmp_path / "c.bed").exists()


# ---- real genomes ----------------------------------------------------------------------------


def real(folder, names):
    if "DNAPRETRAIN_TEST_DATA" not in os.environ:
        pytest.skip("DNAPRETRAIN_TEST_DATA is not set")
    genomes = Path(os.environ["DNAPRETRAIN_TEST_DATA"]) / "genomes"
    for name, file in names.items():
        preprocess([genomes / file], folder / name, assembly=name)
    return [folder / name for name in names]


@pytest.mark.parametrize(
    ("names", "piece", "before", "after"),
    [
        ({"mg": "ecoli_K12_MG1655_NC_000913.3.fa.gz", "dh": "ecoli_K12_DH1_NC_017625.1.fa.gz"}, 10_000, (0.8, 0.75), 0.005),
        ({"yeast": "scerevisiae_R64_chrI-X_Mito.fa.gz"}, 2000, (0.04, 0.03), 0.012),
    ],
    ids=["coli", "yeast"],
)
def test_real_genomes_leak_from_blocks_and_not_from_clusters(tmp_path, names, piece, before, after):
    prefixes = real(tmp_path, names)
    (tmp_path / "c.bed").write_text("".join(HomologyClusters(prefixes, ClusterSettings()).lines()))
    how, fractions = SketchSettings(31, 2, piece), {"valid_fraction": 0.1, "test_fraction": 0.05}
    blocks = Leakage(load_config(make_config(tmp_path, prefixes, block_size=20_000, **fractions)), how, 0.5).report()["sets"]["valid"]
    assert blocks["hashes_share"] > before[0] and blocks["leaked_bases_share"] > before[1]
    found = Leakage(load_config(make_config(tmp_path, prefixes, tmp_path / "c.bed", **fractions)), how, 0.5).report()["sets"]
    bases = sum(len(open_shard(prefix).bases) for prefix in prefixes)
    for side, fraction in (("valid", 0.1), ("test", 0.05)):
        assert found[side]["leaked_bases"] == 0 and found[side]["hashes_share"] < after
        assert 0.98 * fraction * bases < found[side]["bases"] <= fraction * bases
