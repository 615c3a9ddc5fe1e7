"""BPE: the native encoder and trainer against the `tokenizers` library, on all short words, repeats, random and real sequence."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, trainers

from dnapretrain._core import BpeTrainer, reverse_complement
from dnapretrain.cli import main
from dnapretrain.data.shards.preprocess import preprocess
from dnapretrain.data.tokens.bpe import (
    BASES,
    SPECIALS,
    BpeVocabulary,
    format_training,
    load_bpe,
    train_bpe,
    training_file,
    vocabulary_of_merges,
)
from dnapretrain.errors import ConfigError, DataError

DATA = os.environ.get("DNAPRETRAIN_TEST_DATA")
real = pytest.mark.skipif(DATA is None, reason="DNAPRETRAIN_TEST_DATA is not set")
GENOMES = ("ecoli_K12_MG1655_NC_000913.3", "plasmodium_falciparum_3D7_14chr_lowercase", "scerevisiae_R64_chrI-X_Mito")
KNOWN = {
    "ACGTN" * 3: [5, 6, 1049, 0, 5, 6, 1049, 0, 5, 6, 1049, 0],
    "AAAACCCCGGGGTTTTACGTNACGTNNNNACGTTGCAACGTACGT": [39, 102, 92, 69, 6, 1049, 0, 5, 6, 1049, 0, 0, 0, 0, 5, 134, 66, 194, 6, 1049],
}


def bytes_of(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def library(vocabulary: BpeVocabulary) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(vocabulary.to_json()))


def library_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def library_merges(words: list[str], vocab_size: int, **options: int) -> list[tuple[str, str]]:
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIALS), initial_alphabet=list(BASES), show_progress=False, **options
    )
    tokenizer.train_from_iterator(words, trainer)
    return [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]


def learned_merges(words: list[str], vocab_size: int, max_length: int = 0, min_count: int = 0) -> list[tuple[str, str]]:
    trainer = BpeTrainer(num_merges=vocab_size - 9, max_length=max_length, min_count=min_count, capacity=0)
    for word in words:
        assert trainer.feed(bytes_of(word)) == sum(base in "ACGTacgt" for base in word)
    texts, merges = list(BASES), []
    while learned := trainer.learn(7):
        for left, right, _ in learned:
            merges.append((texts[left], texts[right]))
            texts.append(texts[left] + texts[right])
    return merges


def merged_plainly(text: str, vocabulary: BpeVocabulary) -> list[str]:
    """BPE as it is defined: of all neighbours the lowest rank, leftmost first, one merge at a time."""
    ranks = {merge: rank for rank, merge in enumerate(vocabulary.merges)}
    tokens = list(text)
    while True:
        found = min(((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(itertools.pairwise(tokens))), default=(len(ranks), 0))
        if found[0] == len(ranks):
            return tokens
        tokens[found[1] : found[1] + 2] = ["".join(tokens[found[1] : found[1] + 2])]


def random_vocabulary(seed: int) -> BpeVocabulary:
    """Merges of any order that is allowed: not what a corpus would give."""
    rng = random.Random(seed)
    texts = ["A", "T", "C", "G"][: rng.choice([2, 2, 4])]
    merges: list[tuple[str, str]] = []
    plain = vocabulary_of_merges([])
    for _ in range(200):
        left, right = rng.choice(texts), rng.choice(texts)
        # Others never stand side by side: an earlier merge always comes between.
        if left + right not in texts and len(left + right) <= 12 and merged_plainly(left + right, plain) == [left, right]:
            texts.append(left + right)
            merges.append((left, right))
            plain = vocabulary_of_merges(merges)
        if len(merges) == 25:
            break
    return plain


@pytest.fixture(scope="module")
def trained() -> BpeVocabulary:
    """A vocabulary learned from sequence with repeats."""
    rng = random.Random(3)
    unit = "".join(rng.choices("ACGT", k=300))
    words = ["".join(c if rng.random() < 0.9 else rng.choice("ACGT") for c in unit) for _ in range(60)] + ["CA" * 200, "A" * 300]
    return vocabulary_of_merges(learned_merges(words, 600))


# The encoder


def test_all_short_words(trained):
    encoder, reference = trained.encoder(), library(trained)
    for length in range(1, 8):
        words = ["".join(word) for word in itertools.product("ACGT", repeat=length)]
        for word, expected in zip(words, reference.encode_batch(words, add_special_tokens=False), strict=True):
            assert encoder.encode(bytes_of(word))[0].tolist() == expected.ids, word


@pytest.mark.parametrize("seed", range(12))
def test_any_merges_that_are_in_order(seed):
    vocabulary = random_vocabulary(seed)
    encoder = vocabulary.encoder()
    alphabet = "AT" if all(set(left + right) <= set("AT") for left, right in vocabulary.merges) else "ACGT"
    words = ["".join(word) for word in itertools.product(alphabet, repeat=11 if alphabet == "AT" else 5)]
    words += ["".join(random.Random(i).choices(alphabet, k=60)) for i in range(100)]
    for word in words:
        assert [vocabulary.tokens[i] for i in encoder.encode(bytes_of(word))[0]] == merged_plainly(word, vocabulary), word


@settings(max_examples=300, deadline=None)
@given(
    parts=st.lists(
        st.tuples(st.text("ACGT", min_size=1, max_size=9) | st.text("ACGTNRacgt-", min_size=1, max_size=9), st.integers(1, 40)), max_size=9
    ),
    reverse=st.booleans(),
)
def test_repeats_and_other_letters(trained, parts, reverse):
    text = "".join(unit * times for unit, times in parts)
    encoder, reference = trained.encoder(upper_case=False), library(trained)
    other = text[::-1].translate(str.maketrans("ACGTacgt", "TGCAtgca")) if reverse else text
    ids, lengths = encoder.encode(bytes_of(text), reverse)
    assert ids.tolist() == library_ids(reference, other)
    assert lengths.sum() == len(text)
    texts = [trained.tokens[i] for i in ids]
    assert lengths.tolist() == [1 if token == "[UNK]" else len(token) for token in texts]
    upper, _ = trained.encoder().encode(bytes_of(text), reverse)
    assert upper.tolist() == library_ids(reference, other.upper())


@settings(max_examples=100, deadline=None)
@given(text=st.text("ACGTacgtN", max_size=300), reverse=st.booleans(), max_tokens=st.integers(0, 120))
def test_windows_as_batches_read_them(trained, text, reverse, max_tokens):
    encoder = trained.encoder(lowercase_weight=0.25)
    ids, lengths = encoder.encode(bytes_of(text), reverse)
    first, weights, bases = encoder.encode_window(bytes_of(text), reverse, max_tokens)
    count = min(max_tokens, len(ids))
    assert (first.tolist(), bases) == (ids[:count].tolist(), lengths[:count].sum())
    # What was read, alone, encodes to the same: a cut leaves nothing behind that the model could not have seen.
    alone = text[len(text) - bases :] if reverse else text[:bases]
    assert encoder.encode(bytes_of(alone), reverse)[0].tolist() == first.tolist()
    read, at = text[::-1] if reverse else text, 0
    for token, length, weight in zip(first, lengths, weights, strict=False):
        part = read[at : at + length]
        expected = 0 if token == 0 else sum(0.25 if base.islower() else 1 for base in part) / length
        assert weight == pytest.approx(expected)
        at += int(length)


def test_tokens_longer_than_one_look_up():
    merges, text = [], "CA"
    merges.append(("C", "A"))
    for _ in range(6):
        merges.append((text, text))
        text += text
    vocabulary = vocabulary_of_merges(merges)
    encoder, reference = vocabulary.encoder(), library(vocabulary)
    for length in range(1, 400):
        word = ("CA" * 200)[:length]
        assert encoder.encode(bytes_of(word))[0].tolist() == library_ids(reference, word)


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        ([("AA", "A"), ("A", "A")], "no earlier merge makes"),
        ([("A", "A"), ("A", "AA"), ("AA", "A")], "made twice"),
    ],
)
def test_merges_that_no_training_makes(merges, message):
    texts = list(dict.fromkeys(left + right for left, right in merges))
    vocabulary = BpeVocabulary((*SPECIALS, *BASES, *texts), tuple(merges))
    with pytest.raises(DataError, match=message):
        vocabulary.encoder()


@real
def test_published_vectors_and_file(tmp_path):
    path = Path(str(DATA)) / "tokenizers" / "DNABERT2_tokenizer.json"
    vocabulary = load_bpe(path)
    encoder = vocabulary.encoder(upper_case=False)
    for text, ids in KNOWN.items():
        assert encoder.encode(bytes_of(text))[0].tolist() == ids
    assert encoder.encode(bytes_of("acgt"))[0].tolist() == [0] * 4
    vocabulary.save(tmp_path / "tokenizer.json")
    ours, theirs = json.loads((tmp_path / "tokenizer.json").read_text()), json.loads(path.read_text())
    assert ours["model"]["vocab"] == theirs["model"]["vocab"]
    assert ours["model"]["merges"] == theirs["model"]["merges"]
    assert ours["post_processor"] == theirs["post_processor"]
    assert load_bpe(tmp_path / "tokenizer.json") == vocabulary


@real
@pytest.mark.parametrize("genome", GENOMES)
def test_real_sequence(genome):
    path = Path(str(DATA)) / "tokenizers" / "DNABERT2_tokenizer.json"
    encoder, reference = load_bpe(path).encoder(), Tokenizer.from_file(str(path))
    lines = gzip.decompress((Path(str(DATA)) / "genomes" / f"{genome}.fa.gz").read_bytes()).split(b"\n")
    text = b"".join(line for line in lines if not line.startswith(b">")).decode()[
        : int(os.environ.get("DNAPRETRAIN_TEST_BASES", 1_000_000))
    ]
    for start in range(0, len(text), 10_007):
        piece = text[start : start + 10_007]
        assert encoder.encode(bytes_of(piece))[0].tolist() == library_ids(reference, piece.upper())
        other = reverse_complement(bytes_of(piece))
        assert encoder.encode(bytes_of(piece), True)[0].tolist() == encoder.encode(other)[0].tolist()


# The trainer


@settings(max_examples=60, deadline=None)
@given(
    units=st.lists(
        st.tuples(st.text("ACGT", min_size=1, max_size=60) | st.text("AT", min_size=1, max_size=30), st.integers(1, 12)), min_size=1
    ),
    longest=st.sampled_from([0, 0, 4, 9]),
    min_count=st.sampled_from([0, 2, 5]),
)
def test_learns_the_merges_of_the_library(units, longest, min_count):
    words = [unit * times for unit, times in units]
    # The library's tokens are shorter than its max_token_length.
    options = {"max_token_length": longest + 1} if longest else {}
    assert learned_merges(words, 120, longest, min_count) == library_merges(words, 120, min_frequency=min_count, **options)


def test_other_letters_end_words_and_case_is_ignored():
    words = ["ACGTACGGTACA", "TTACG", "ACACACA"]
    assert learned_merges(["NACGTacggTACARYTTACGN", "ACACACA"], 20) == library_merges(words, 20)


def test_the_other_strand():
    text = "ACGGTNAACCCGTTAGGAGAGATTT" * 5
    both = [BpeTrainer(num_merges=20, max_length=0, min_count=1, capacity=0) for _ in range(2)]
    both[0].feed(bytes_of(text), reverse=True)
    both[1].feed(reverse_complement(bytes_of(text)))
    assert both[0].learn(20) == both[1].learn(20)


def test_feeding_after_learning_and_settings_out_of_range():
    trainer = BpeTrainer(num_merges=3, max_length=0, min_count=1, capacity=0)
    trainer.feed(bytes_of("ACGT"))
    trainer.learn(1)
    with pytest.raises(ValueError, match="before the first merge"):
        trainer.feed(bytes_of("ACGT"))
    with pytest.raises(ValueError, match="merges must be 1 to"):
        BpeTrainer(num_merges=0, max_length=0, min_count=1, capacity=0)
    with pytest.raises(ValueError, match="2 bases or more"):
        BpeTrainer(num_merges=1, max_length=1, min_count=1, capacity=0)


def write_shard(folder: Path, records: list[str], name: str = "shard") -> Path:
    (folder / f"{name}.fa").write_text("".join(f">{name}{i}\n{record}\n" for i, record in enumerate(records)))
    preprocess([folder / f"{name}.fa"], folder / name)
    return folder / name


def test_from_shards_to_a_file_the_library_reads(tmp_path):
    rng = random.Random(0)
    records = ["".join(rng.choices("ACGT", weights=(4, 1, 2, 3), k=4000)) for _ in range(3)]
    records[1] = records[1][:500] + "R" + records[1][501:].lower()
    prefixes = [write_shard(tmp_path, records[:2], "a"), write_shard(tmp_path, records[2:], "b")]
    output = tmp_path / "tokenizer.json"
    report = train_bpe(prefixes, output, vocab_size=200, max_token_length=0)
    words = [records[0], *records[1].upper().split("R"), records[2]]
    vocabulary = load_bpe(output)
    assert list(vocabulary.merges) == library_merges(words, 200, min_frequency=2)
    reference = Tokenizer.from_file(str(output))
    assert vocabulary.encoder(upper_case=False).encode(bytes_of(records[1]))[0].tolist() == library_ids(reference, records[1])
    assert reference.encode("A").ids == [1, 5, 2]
    assert report["bases"] == {"total": 12_000, "used": 11_999, "not_drawn": 0, "not_acgt": 1}
    assert json.loads(training_file(output).read_text()) == report
    assert len(report["counts"]) == len(vocabulary.merges) == 191
    assert report["counts"] == sorted(report["counts"], reverse=True)
    assert "12,000" in format_training(report, output)
    assert sorted(path.name for path in tmp_path.glob("tokenizer*")) == ["tokenizer.json", "tokenizer.json.training.json"]


def test_drawn_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("dnapretrain.data.tokens.bpe.PIECE", 100)
    rng = random.Random(0)
    prefix = write_shard(tmp_path, ["".join(rng.choices("ACGT", k=size)) for size in (950, 1, 3000)])
    reports = [train_bpe([prefix], tmp_path / f"{i}.json", vocab_size=40, max_bases=730, seed=i // 2) for i in range(4)]
    assert [report["bases"]["used"] for report in reports] == [730] * 4
    assert [report["bases"]["not_drawn"] for report in reports] == [3951 - 730] * 4
    texts = [(tmp_path / f"{i}.json").read_text() for i in range(4)]
    assert texts[0] == texts[1] != texts[2] == texts[3]
    whole = train_bpe([prefix], tmp_path / "whole.json", vocab_size=40, max_bases=3951)
    assert whole["bases"]["used"] == 3951


def test_both_strands_count_twice(tmp_path):
    prefix = write_shard(tmp_path, ["AAAAAAAAAC"])
    report = train_bpe([prefix], tmp_path / "t.json", vocab_size=11, min_count=1, both_strands=True)
    # AA stands in 8 places of one strand, TT in 8 of the other: the tie goes to the lower ids.
    assert load_bpe(tmp_path / "t.json").merges == (("A", "A"), ("T", "T"))
    assert report["counts"] == [8, 8]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"vocab_size": 9}, ConfigError, "vocab_size = 9 is outside 10 to"),
        ({"vocab_size": 10**6}, ConfigError, "vocab_size = 1000000 is outside"),
        ({"max_token_length": 1}, ConfigError, "max_token_length = 1"),
        ({"min_count": 0}, ConfigError, "min_count = 0"),
        ({"max_bases": 0}, ConfigError, "max_bases = 0"),
        ({"vocab_size": 4096}, DataError, "pairs to merge, 4087 wanted"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, options, error, message):
    prefix = write_shard(tmp_path, ["ACGTTGCA" * 20])
    with pytest.raises(error, match=message):
        train_bpe([prefix], tmp_path / "t.json", **options)
    assert not list(tmp_path.glob("t.json*"))


def test_the_verb(tmp_path, capsys):
    prefix = write_shard(tmp_path, ["ACGTTGCA" * 20])
    assert main(["train-bpe", str(prefix), "--output", str(tmp_path / "t.json"), "--vocab-size", "12"]) == 0
    assert "12 tokens, 3 of them merged" in capsys.readouterr().out
    assert len(load_bpe(tmp_path / "t.json").tokens) == 12


# Files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.pop("model"), "not a tokenizer.json with a BPE model"),
        (lambda file: file["model"].update(type="WordPiece"), "supported is BPE"),
        (lambda file: file["model"].update(unk_token=None), "unk_token"),
        (lambda file: file["model"].update(dropout=0.1), "model.dropout"),
        (lambda file: file["model"].update(ignore_merges=True), "model.ignore_merges"),
        (lambda file: file.update(normalizer={"type": "Lowercase"}), "normalizer"),
        (lambda file: file.update(pre_tokenizer={"type": "ByteLevel"}), "pre_tokenizer"),
        (lambda file: file["model"]["vocab"].update(N=10), "'N'"),
        (lambda file: file["model"]["vocab"].update(AA=11), "not 0 to 9"),
        (lambda file: file["model"]["vocab"].update({"[MSK]": file["model"]["vocab"].pop("[MASK]")}), "lacks"),
        (lambda file: file["model"]["merges"].append("A T"), "merge 1"),
    ],
)
def test_files_of_another_kind(tmp_path, change, message):
    contents = vocabulary_of_merges([("A", "A")]).to_json()
    change(contents)
    (tmp_path / "t.json").write_text(json.dumps(contents))
    with pytest.raises(DataError, match=message):
        load_bpe(tmp_path / "t.json")


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "t.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        load_bpe(tmp_path / "t.json")
    with pytest.raises(DataError, match="cannot be read"):
        load_bpe(tmp_path / "none.json")


def test_merges_as_newer_files_write_them(tmp_path):
    vocabulary = vocabulary_of_merges([("A", "A"), ("AA", "C")])
    contents = vocabulary.to_json()
    contents["model"]["merges"] = [list(merge) for merge in vocabulary.merges]
    (tmp_path / "t.json").write_text(json.dumps(contents))
    assert load_bpe(tmp_path / "t.json") == vocabulary
