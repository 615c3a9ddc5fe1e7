"""Sketches against plain sets of k-mers; duplicates and leaks that were planted are found, others are not."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dnapretrain import _core
from dnapretrain.cli import main
from dnapretrain.data.audit.dedup import Duplicates, format_duplicates
from dnapretrain.data.audit.homology import MIN_HASHES, Leakage, Pieces, SketchSettings, bed_names
from dnapretrain.data.audit.runs import open_config
from dnapretrain.data.sampling.split import Segments, whole_documents
from dnapretrain.data.shards.preprocess import preprocess
from dnapretrain.data.shards.shard import Coordinates, open_shard
from dnapretrain.errors import ConfigError, DataError

MASK = (1 << 64) - 1
COMPLEMENT = str.maketrans("ACGT", "TGCA")


def slow_hash(kmer: str) -> int:
    """Of a k-mer and its reverse complement alike: splitmix64 of the smaller 2-bit number."""
    codes = [int("".join(str("ACGT".index(base)) for base in text), 4) for text in (kmer, kmer.translate(COMPLEMENT)[::-1])]
    x = (min(codes) + 0x9E3779B97F4A7C15) & MASK
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def slow_sketch(bases: str, start: int, end: int, limit: int, k: int, scale: int) -> list[int]:
    kmers = [bases[at : at + k].upper() for at in range(start, end) if at + k <= limit]
    hashes = {slow_hash(kmer) for kmer in kmers if set(kmer) <= set("ACGT")}
    return sorted(value for value in hashes if value <= MASK // scale)


def sketch(bases: str, k: int, scale: int = 1) -> list[int]:
    whole = (np.array([value], np.int64) for value in (0, len(bases), len(bases)))
    hashes, _ = _core.sketch(np.frombuffer(bases.encode(), np.uint8), *whole, k=k, scale=scale)
    return hashes.tolist()


def random_bases(rng: np.random.Generator, length: int) -> str:
    return "".join(rng.choice(list("ACGT"), length))


def reversed_complement(bases: str) -> str:
    return bases.translate(COMPLEMENT)[::-1]


def mutated(rng: np.random.Generator, bases: str, rate: float) -> str:
    """Each base is another one with this probability."""
    return "".join("ACGT"[("ACGT".index(base) + int(rng.integers(1, 4))) % 4] if rng.random() < rate else base for base in bases)


def make_shard(folder: Path, name: str, records: dict[str, str]) -> Path:
    (folder / f"{name}.fa").write_text("".join(f">{contig}\n{bases}\n" for contig, bases in records.items()))
    preprocess([folder / f"{name}.fa"], folder / name)
    return folder / name


# ---- sketches --------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_sketch_equals_plain_sets_of_kmers(data: st.DataObject) -> None:
    bases = data.draw(st.text("ACGTacgt", max_size=120) | st.text("ACGTacgtNnRU", max_size=120) | st.text("AT", max_size=60))
    cuts = data.draw(st.lists(st.lists(st.integers(0, len(bases)), min_size=3, max_size=3).map(sorted), max_size=4))
    k, scale = data.draw(st.sampled_from([11, 12, 21, 30, 31])), data.draw(st.sampled_from([1, 2, 7]))
    starts, ends, limits = np.array(cuts, np.int64).reshape(-1, 3).T
    hashes, counts = _core.sketch(np.frombuffer(bases.encode(), np.uint8), starts, ends, limits, k=k, scale=scale)
    expected = [slow_sketch(bases, *cut, k, scale) for cut in cuts]
    assert counts.tolist() == [len(piece) for piece in expected]
    assert hashes.tolist() == [value for piece in expected for value in piece]


@pytest.mark.parametrize("k", [11, 20, 31])
def test_both_strands_and_cases_have_one_sketch(k: int) -> None:
    bases = random_bases(np.random.default_rng(k), 5000)
    assert len(sketch(bases, k, 10)) > 300
    assert sketch(reversed_complement(bases), k, 10) == sketch(bases.lower(), k, 10) == sketch(bases, k, 10)


def test_other_letters_break_kmers() -> None:
    bases = random_bases(np.random.default_rng(0), 400)
    assert len(sketch(bases, 21)) == 380
    for letter in "NnRyU-":
        broken = f"{bases[:100]}{letter}{bases[101:]}"
        assert sketch(broken, 21) == sorted({*sketch(bases[:100], 21), *sketch(bases[101:], 21)})
        assert len(sketch(broken, 21)) == 80 + 279
    assert sketch("N" * 50, 21) == sketch("ACGT", 21) == []


def test_one_kmer_of_scale_is_kept_and_poly_a_is_not_always() -> None:
    bases = random_bases(np.random.default_rng(1), 200_000)
    assert abs(len(sketch(bases, 31, 50)) - 4000) < 4 * 4000**0.5
    assert set(sketch(bases, 31, 50)) <= set(sketch(bases, 31, 10))
    assert sketch("A" * 40, 31, 1000) == []


@pytest.mark.parametrize(
    ("cut", "k", "scale", "message"),
    [
        ((0, 5, 21), 11, 1, "piece 0"),
        ((-1, 5, 20), 11, 1, "piece 0"),
        ((6, 5, 20), 11, 1, "piece 0"),
        ((0, 5, 4), 11, 1, "piece 0"),
        ((0, 5, 5), 10, 1, "k = 10"),
        ((0, 5, 5), 32, 1, "k = 32"),
        ((0, 5, 5), 11, 0, "scale = 0"),
    ],
)
def test_pieces_outside_of_the_bases_and_bad_settings_are_refused(cut: tuple[int, int, int], k: int, scale: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _core.sketch(np.zeros(20, np.uint8), *(np.array([value]) for value in cut), k=k, scale=scale)


def slow_offers(pieces: list[set[int]], near: float, min_hashes: int) -> list[tuple[int, int]]:
    holder_of: dict[int, int] = {}
    results = []
    for number, piece in enumerate(pieces):
        holders = Counter(holder_of[value] for value in piece if value in holder_of)
        shared = sum(holders.values())
        if len(piece) >= min_hashes and shared >= near * len(piece):
            results.append((shared, min(holders, key=lambda holder: (-holders[holder], holder))))
            continue
        results.append((shared, -1))
        for value in piece:
            holder_of.setdefault(value, number)
    return results


@pytest.mark.parametrize(("number", "size", "values"), [(300, 12, 400), (40, 4000, 10**6), (20, 8000, MASK)])
def test_kept_sketches_equal_a_dictionary(number: int, size: int, values: int) -> None:
    rng = np.random.default_rng(number)
    pieces: list[set[int]] = []
    for at in range(number):
        old = sorted(pieces[int(rng.integers(at))]) if at and rng.random() < 0.5 else []
        pieces.append(
            {*old[: int(rng.integers(len(old) + 1))], *rng.integers(0, values, int(rng.integers(size)), dtype=np.uint64).tolist()}
        )
    kept = _core.KeptSketches(0.5, 5)
    found: list[tuple[int, int]] = []
    for first in range(0, number, 7):  # in several calls
        part = [sorted(piece) for piece in pieces[first : first + 7]]
        hashes = np.array([value for piece in part for value in piece], np.uint64)
        found += zip(*(array.tolist() for array in kept.offer(hashes, np.array([len(piece) for piece in part]))), strict=True)
    assert found == slow_offers(pieces, 0.5, 5)
    assert {holder for _, holder in found} > {-1}
    assert kept.num_hashes == len(set().union(*(piece for piece, (_, holder) in zip(pieces, found, strict=True) if holder < 0)))


@pytest.mark.parametrize(("near", "min_hashes"), [(0.0, 1), (1.1, 1), (float("nan"), 1), (0.5, 0)])
def test_kept_sketches_refuse_settings_out_of_range(near: float, min_hashes: int) -> None:
    with pytest.raises(ValueError, match=r"near|min_hashes"):
        _core.KeptSketches(near, min_hashes)


def test_kept_sketches_refuse_counts_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="add up"):
        _core.KeptSketches(0.5, 1).offer(np.zeros(3, np.uint64), np.array([1, 1]))
    with pytest.raises(ValueError, match="below 0"):
        _core.KeptSketches(0.5, 1).offer(np.zeros(1, np.uint64), np.array([2, -1]))


# ---- pieces ----------------------------------------------------------------------------------


def test_pieces_are_equal_parts_that_cover_the_segments(tmp_path: Path) -> None:
    prefix = make_shard(tmp_path, "a", {"x": random_bases(np.random.default_rng(2), 2500), "y": "ACGT" * 30})
    shard = open_shard(prefix)
    pieces = Pieces.of(shard, whole_documents(shard), 1000)
    assert [pieces.locus(number) for number in range(len(pieces))] == ["a:x:1-833", "a:x:834-1666", "a:x:1667-2500", "a:y:1-120"]
    assert pieces.limit.tolist() == [2500, 2500, 2500, 120]
    text = shard.bases.tobytes().decode()
    expected = [(0, 833, 2500), (833, 1666, 2500), (1666, 2500, 2500), (2500, 2620, 2620)]
    [(first, hashes, _)] = pieces.sketches(SketchSettings(21, 1, 1000))
    assert first == 0
    assert hashes.tolist() == [value for cut in expected for value in slow_sketch(text, *cut, 21, 1)]


def test_batches_of_pieces_follow_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = open_shard(make_shard(tmp_path, "a", {"x": random_bases(np.random.default_rng(3), 2500), "y": "ACGT" * 30}))
    pieces, how = Pieces.of(shard, whole_documents(shard), 300), SketchSettings(21, 2, 300)
    [(_, whole, counts)] = pieces.sketches(how)
    monkeypatch.setattr("dnapretrain.data.audit.homology.BATCH_BASES", 700)
    batches = list(pieces.sketches(how))
    assert [first for first, _, _ in batches] == [0, 2, 4, 6, 8]
    assert np.concatenate([hashes for _, hashes, _ in batches]).tolist() == whole.tolist()
    assert np.concatenate([found for _, _, found in batches]).tolist() == counts.tolist()


def test_loci_of_documents_of_the_minus_strand_count_from_their_end() -> None:
    coordinates = Coordinates(["c"], np.array([100]), np.array([400]), ["-"], ["asm"])
    shard = SimpleNamespace(coordinates=coordinates)
    pieces = Pieces.of(shard, Segments(np.array([0]), np.array([0]), np.array([300])), 100)
    assert [pieces.intervals(number) for number in range(3)] == [[(300, 400)], [(200, 300)], [(100, 200)]]
    assert pieces.locus(0) == "asm:c:301-400"


@pytest.mark.parametrize("values", [{"k": 10}, {"k": 32}, {"scale": 0}, {"piece": 0}, {"scale": 100, "piece": 999}])
def test_settings_out_of_range_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(reversed(values))):
        SketchSettings(**values)


# ---- dedup -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A shard, and another one with copies of its parts."""
    folder, rng = tmp_path_factory.mktemp("planted"), np.random.default_rng(4)
    genome, short = random_bases(rng, 60_000), random_bases(rng, 60)
    first = make_shard(folder, "first", {"genome": genome, "short": short, "new": random_bases(rng, 7000)})
    copies = {
        "same": reversed_complement(genome).lower(),
        "short_same": reversed_complement(short),
        "inside": reversed_complement(genome[21_234:41_234]),
        "rate_0.1": mutated(rng, genome[:20_000], 0.001),
        "rate_2": mutated(rng, genome[20_000:40_000], 0.02),
        "other": random_bases(rng, 20_000),
    }
    return first, make_shard(folder, "second", copies)


def left_out(duplicates: Duplicates) -> dict[str, int]:
    bases: Counter[str] = Counter()
    for line in duplicates.bed():
        contig, start, end, _, _ = line.split("\t")
        bases[contig] += int(end) - int(start)
    return dict(bases)


def test_planted_copies_are_found_and_others_are_not(planted: tuple[Path, Path]) -> None:
    found = Duplicates(planted, SketchSettings(), 0.9)
    assert left_out(found) == {"same": 60_000, "short_same": 60, "inside": 20_000, "rate_0.1": 20_000}
    report = found.report()
    assert report["exact"] == {"documents": 2, "bases": 60_060}
    assert report["near"] == {"pieces": 4, "bases": 40_000, "all_hashes_pieces": 2, "of_pieces": 16}
    assert report["kept_bases"] + report["exact"]["bases"] + report["near"]["bases"] == report["bases"] == 60_060 * 2 + 7000 + 80_000
    assert report["not_judged"] == {"pieces": 1, "bases": 60}
    assert "60,060 bases" in format_duplicates(report)
    # 0.98^31 = 0.53 of the k-mers of the copy at 2 % are the same
    assert left_out(Duplicates(planted, SketchSettings(), 0.4)) == {**left_out(found), "rate_2": 20_000}
    assert left_out(Duplicates(planted, SketchSettings(), 1.0)) == {"same": 60_000, "short_same": 60, "inside": 20_000}


def test_the_first_shard_keeps_its_own_and_the_longest_document_of_a_shard_stays(planted: tuple[Path, Path]) -> None:
    assert left_out(Duplicates(planted[::-1], SketchSettings(), 0.9)) == {
        "genome": 60_000,
        "short": 60,
        "inside": 20_000,
        "rate_0.1": 20_000,
    }


def test_clusters_are_numbered_by_the_piece_that_stays(planted: tuple[Path, Path]) -> None:
    found = Duplicates(planted, SketchSettings(), 0.9)
    rows = [line.split("\t") for line in found.bed()]
    assert [row[:2] for row in rows] == sorted(row[:2] for row in rows)
    clusters = {row["cluster"]: row for row in found.report()["largest"]}
    assert len(clusters) == found.report()["clusters"] == len({row[3] for row in rows})
    for number, cluster in clusters.items():
        members = [row for row in rows if int(row[3]) == number]
        assert (cluster["left_out"], cluster["bases"]) == (len(members), sum(int(row[2]) - int(row[1]) for row in members))
    by_contig = {row[0]: clusters[int(row[3])]["kept"] for row in rows}
    assert by_contig["same"] == "first:genome:1-10000"
    assert by_contig["short_same"] == "first:short:1-60"
    assert {row[0]: int(row[4]) for row in rows if row[0] in ("same", "inside")} == {"same": 1000, "inside": 1000}


@pytest.mark.parametrize("seed", range(4))
def test_what_is_left_out_is_in_what_stays(tmp_path: Path, seed: int) -> None:
    """With all k-mers: at least the share `near` of each piece left out, and less than that of each piece when it was taken in."""
    rng = np.random.default_rng(seed)
    source = random_bases(rng, 3000)
    records = {}
    for number in range(25):
        start, length = int(rng.integers(2500)), int(rng.integers(20, 900))
        part = mutated(rng, source[start : start + length], float(rng.choice([0, 0.003, 0.03])))
        records[f"r{number}"] = reversed_complement(part) if rng.random() < 0.5 else part
    found = Duplicates([make_shard(tmp_path, "a", records)], SketchSettings(11, 1, 200), 0.8)
    assert found.report()["exact"]["documents"] == 0
    gone = {tuple(line.split("\t")[:3]) for line in found.bed()}
    held: set[int] = set()
    num_left_out = 0
    for name, bases in sorted(records.items(), key=lambda item: -len(item[1])):
        parts = -(-len(bases) // 200)
        for part in range(parts):
            start, end = part * len(bases) // parts, (part + 1) * len(bases) // parts
            hashes = set(slow_sketch(bases, start, end, len(bases), 11, 1))
            expected = len(hashes) >= MIN_HASHES and len(hashes & held) >= 0.8 * len(hashes)
            assert ((name, str(start), str(end)) in gone) == expected
            num_left_out += expected
            held |= set() if expected else hashes
    assert num_left_out > 3


def test_bed_leaves_the_duplicates_out_of_a_new_shard(
    planted: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = planted
    assert main(["dedup", str(first), str(second), "--output", str(tmp_path / "drop.bed"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    preprocess([f"{first}.fa", f"{second}.fa"], tmp_path / "clean", exclude_bed=tmp_path / "drop.bed")
    assert len(open_shard(tmp_path / "clean").bases) == report["kept_bases"]
    again = Duplicates([tmp_path / "clean"], SketchSettings(), 0.9).report()
    assert (again["exact"]["bases"], again["near"]["bases"]) == (0, 0)


def test_contigs_of_one_name_in_two_assemblies_are_named_with_them(tmp_path: Path) -> None:
    bases = random_bases(np.random.default_rng(5), 2000)
    prefixes = [make_shard(tmp_path, name, {"chr1": bases, f"only_{name}": "ACGT" * 20}) for name in ("a", "b")]
    assert bed_names([open_shard(prefix) for prefix in prefixes])["a", "only_a"] == "only_a"
    [line, other] = Duplicates(prefixes, SketchSettings(), 0.9).bed()
    assert line.split("\t")[:3] == ["b:chr1", "0", "2000"]
    assert other.split("\t")[:3] == ["only_b", "0", "80"]


def test_a_shard_of_copies_only_is_left_out(planted: tuple[Path, Path], tmp_path: Path) -> None:
    lines = (planted[0].parent / "first.fa").read_text().splitlines()
    copies = make_shard(
        tmp_path, "copies", {f"copy_{name[1:]}": bases.lower() for name, bases in zip(lines[::2], lines[1::2], strict=True)}
    )
    found = Duplicates([planted[0], copies], SketchSettings(), 0.9)
    assert left_out(found) == {"copy_genome": 60_000, "copy_short": 60, "copy_new": 7000}
    assert found.report()["exact"] == {"documents": 3, "bases": 67_060}


def test_no_bed_of_documents_that_lie_on_the_same_places(planted: tuple[Path, Path]) -> None:
    for file in ("edits", "labels.tsv"):
        found = Duplicates(planted, SketchSettings(), 0.9)
        found._shards[0].manifest["files"][file] = {}
        with pytest.raises(DataError, match="overlap on the contig"):
            found.bed()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--near", "0"], "--near = 0"),
        (["--near", "1.5"], "--near = 1.5"),
        (["--k", "9"], "--k = 9"),
        (["--scale", "2000"], "--piece = 10000"),
    ],
)
def test_mistakes_in_dedup_are_one_line(
    planted: tuple[Path, Path], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dedup", str(planted[0]), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert main(["dedup", str(planted[0]), f"{planted[0]}"]) == 2
    assert "given twice" in capsys.readouterr().err


# ---- leakage ---------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path, tiny_config) -> Path:
    """Training on x and y; z held out by the split, and two sets beside: half of one is y on the other strand."""
    rng = np.random.default_rng(6)
    x, y, z = random_bases(rng, 30_000), random_bases(rng, 20_000), random_bases(rng, 10_000)
    train = make_shard(tmp_path, "train", {"x": x, "y": y, "z": z + x[5000:6000].lower()})
    half = make_shard(tmp_path, "half", {"h": reversed_complement(y[3000:18_000]), "own": random_bases(rng, 15_000)})
    apart = make_shard(tmp_path, "apart", {"apart": random_bases(rng, 5000), "tiny": "ACGTTGCA"})
    split = {"by": "contig", "valid_contigs": ["z"]}
    tree = tiny_config("run", **{"data.train": [str(train)], "data.split": split, "data.valid": {"half": str(half), "apart": str(apart)}})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return tmp_path / "config.yaml"


def test_planted_leaks_are_found_and_others_are_not(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leakage", str(config), "--piece", "5000", "--json", "--output", str(config.with_suffix(".bed"))]) == 0
    report = json.loads(capsys.readouterr().out)
    sets = report["sets"]
    assert list(sets) == ["valid", "half", "apart"]
    assert report["train_bases"] == 50_000
    assert (sets["half"]["leaked_pieces"], sets["half"]["leaked_bases"], sets["half"]["leaked_bases_share"]) == (3, 15_000, 0.5)
    assert 0.4 < sets["half"]["hashes_share"] < 0.6
    assert sets["apart"]["hashes_in_training"] == sets["apart"]["leaked_bases"] == 0
    assert (sets["apart"]["not_judged_pieces"], sets["apart"]["not_judged_bases"], sets["apart"]["worst"]) == (1, 8, [])
    assert sets["valid"]["leaked_bases"] == 0
    assert 0.04 < sets["valid"]["hashes_share"] < 0.16
    [worst] = sets["valid"]["worst"]
    assert (worst["locus"], worst["in_training"]) == ("train:z:7334-11000", "train:x:5001-10000")
    places = [line.split("\t") for line in config.with_suffix(".bed").read_text().splitlines()]
    assert places == [["h", str(start), str(start + 5000), "half", "1000"] for start in (0, 5000, 10_000)]
    # reversed: h begins with what y ends with
    assert [row["in_training"] for row in sets["half"]["worst"]] == ["train:y:15001-20000", "train:y:10001-15000", "train:y:5001-10000"]


def test_leakage_with_all_kmers_equals_plain_sets(config: Path) -> None:
    how = SketchSettings(21, 1, 700)
    report = Leakage(open_config(config, []), how, 0.5).report()
    texts = {}
    for name in ("train", "half", "apart"):
        lines = (config.parent / f"{name}.fa").read_text().split(">")[1:]
        texts.update({record.split("\n")[0]: record.split("\n")[1] for record in lines})
    held = {value for name in "xy" for value in slow_sketch(texts[name], 0, len(texts[name]), len(texts[name]), 21, 1)}
    for name, contigs in (("valid", ["z"]), ("half", ["h", "own"]), ("apart", ["apart", "tiny"])):
        total = shared = 0
        for bases in (texts[contig] for contig in contigs):
            parts = -(-len(bases) // 700)
            for part in range(parts):
                piece = set(slow_sketch(bases, part * len(bases) // parts, (part + 1) * len(bases) // parts, len(bases), 21, 1))
                total, shared = total + len(piece), shared + len(piece & held)
        assert (report["sets"][name]["hashes"], report["sets"][name]["hashes_in_training"]) == (total, shared)


def test_leakage_after_dropping_the_pieces_is_none(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bed = config.with_suffix(".bed")
    assert main(["leakage", str(config), "data.split.by=none", "data.split.valid_contigs=[]", "--output", str(bed)]) == 0
    assert "half: 30,000 bases" in capsys.readouterr().out
    preprocess([config.parent / "half.fa"], config.parent / "clean", exclude_bed=bed)
    overrides = [f"data.valid={{clean: {config.parent / 'clean'}}}", "data.split.by=none", "data.split.valid_contigs=[]"]
    [(name, row)] = Leakage(open_config(config, overrides), SketchSettings(), 0.5).report()["sets"].items()
    assert (name, row["bases"], row["hashes_in_training"]) == ("clean", 15_000, 0)


def test_mistakes_in_leakage_are_one_line(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ([str(config), "--threshold", "0"], "--threshold = 0"),
        ([str(config), "data.valid={}", "data.split.by=none", "data.split.valid_contigs=[]"], "nothing is held out"),
        ([str(tmp_path)], "no run.yaml"),
        ([str(tmp_path / "missing.yaml")], "not found"),
    ):
        assert main(["leakage", *arguments]) == 2
        assert message in capsys.readouterr().err


# ---- real genomes ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coli(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """E. coli K-12 MG1655 and DH1, a descendant of another K-12 line, numbered on the other strand."""
    if "DNAPRETRAIN_TEST_DATA" not in os.environ:
        pytest.skip("DNAPRETRAIN_TEST_DATA is not set")
    folder, genomes = tmp_path_factory.mktemp("coli"), Path(os.environ["DNAPRETRAIN_TEST_DATA"]) / "genomes"
    for name, file in (("mg1655", "MG1655_NC_000913.3"), ("dh1", "DH1_NC_017625.1")):
        preprocess([genomes / f"ecoli_K12_{file}.fa.gz"], folder / name, assembly=name)
    return folder / "mg1655", folder / "dh1"


def test_dh1_is_a_near_duplicate_of_mg1655(coli: tuple[Path, Path]) -> None:
    report = Duplicates(coli, SketchSettings(), 0.9).report()
    assert report["near"]["bases"] == 4_630_707 == len(open_shard(coli[1]).bases)
    assert report["kept_bases"] == 4_641_652
    assert Duplicates(coli[1:], SketchSettings(), 0.9).report()["near"]["bases"] == 0


def test_dh1_held_out_of_training_on_mg1655_leaks_and_five_regions_of_its_own_do_not(coli: tuple[Path, Path], tiny_config) -> None:
    from dnapretrain.config_file import config_from_dict

    tree = tiny_config(**{"data.train": [str(coli[0])], "data.split": {"by": "none"}, "data.valid": {"dh1": str(coli[1])}})
    found = Leakage(config_from_dict(tree), SketchSettings(), 0.5).report()["sets"]["dh1"]
    assert found["leaked_bases_share"] == 1.0
    assert found["hashes_share"] > 0.995
    contig = open_shard(coli[1]).coordinates.contig[0]
    bed = coli[0].with_name("five.bed")
    bed.write_text("".join(f"{contig}\t{start}\t{start + 50_000}\n" for start in range(100_000, 4_000_000, 900_000)))
    tree = tiny_config(**{"data.train": [str(coli[1])], "data.split": {"by": "bed", "valid_bed": str(bed)}})
    found = Leakage(config_from_dict(tree), SketchSettings(), 0.5).report()["sets"]["valid"]
    assert found["bases"] == 250_000
    assert found["leaked_bases"] == 0
    assert found["hashes_share"] < 0.03  # rRNA operons and insertion sequences
