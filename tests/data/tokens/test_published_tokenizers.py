"""Published tokenizers, id for id: known vectors, a plain Python version on real sequence, and what transformers loads."""

import gzip
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow import reverse_complement
from slow_published import GENERATOR_FIRST, SIXMERS, nt_ids, published
from streams import make_stream

from dnapretrain.config import PUBLISHED_TOKENIZERS, TokenizerConfig
from dnapretrain.config_file import config_from_dict
from dnapretrain.data.tokens.files import load_hf_tokenizer, save_hf_tokenizer
from dnapretrain.data.tokens.tokenizers import Tokenizer, build_tokenizer
from dnapretrain.errors import CheckpointError, ConfigError, DataError

KINDS = list(PUBLISHED_TOKENIZERS)
DATA = os.environ.get("DNAPRETRAIN_TEST_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="needs DNAPRETRAIN_TEST_DATA")
GENOMES = {
    "E. coli": ("genomes/ecoli_K12_MG1655_NC_000913.3.fa.gz", 0),
    "lambda": ("genomes/lambda_NC_001416.1.fa.gz", 0),
    "Vibrio, IUPAC codes": ("genomes/vibrio_cholerae_N16961_AE003852_AE003853.fa.gz", 0),
    "human chr20, N run": ("human/GRCh37_chr20_1-2500000.fa.gz", 59_000),
    "human, N runs": ("human/NT_077402.2_Nrun.fa.gz", 0),
    "human, soft-masked": ("human/hg19_chr17_part_softmasked.fa.gz", 0),
}
"""File, and where its sequence begins to be interesting."""


def tokenizer_of(kind, **settings):
    return build_tokenizer(TokenizerConfig(kind=kind, **settings))


@cache
def genome(name, limit=100_000):
    """`limit` bases of all records together, behind the surroundings of ambiguity codes that may lie elsewhere."""
    path, start = GENOMES[name]
    with gzip.open(Path(DATA) / path, "rt") as file:
        text = "".join(line.strip() for line in file if not line.startswith(">"))
    rare = [at for at, base in enumerate(text) if base not in "ACGTNacgtn"][:50] if len(text) > limit else []
    around = "".join(text[max(0, at - 200) : at + 200] for at in rare)
    return around + text[start : start + limit]


def test_vocabularies():
    for kind in ("nt_v1", "nt_v2"):
        tokenizer, ids = tokenizer_of(kind), nt_ids(kind)
        assert {text: number for number, text in enumerate(tokenizer.tokens[: len(ids)])} == ids
        assert (tokenizer.unk_id, tokenizer.pad_id, tokenizer.mask_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2, 3, None)
        assert [tokenizer.tokens[number] for number in tokenizer.standard_ids] == [*SIXMERS, *"ATCGN"]
    v1, v2 = tokenizer_of("nt_v1"), tokenizer_of("nt_v2")
    assert (v1.vocab_size, len(v1.tokens), v1.tokens[4105:], v1.tokens.index("AAAAAA")) == (4105, 4107, ("<eos>", "<bos>"), 4)
    assert (v2.vocab_size, len(v2.tokens), v2.tokens[4:7]) == (4107, 4107, ("<eos>", "<bos>", "AAAAAA"))
    generator = tokenizer_of("generator")
    assert (generator.unk_id, generator.bos_id, generator.eos_id, generator.pad_id, generator.mask_id) == (0, 1, 2, 3, 4)
    assert (generator.vocab_size, generator.tokens[31:33], generator.tokens[1397], generator.tokens[-1]) == (
        *(4128, ("<sp2>", "AAAAAA")),
        *("TTTTTT", "GGGGGG"),
    )
    assert generator.standard_ids == range(GENERATOR_FIRST, 4128)
    aido = tokenizer_of("aido_dna")
    assert (aido.pad_id, aido.mask_id, aido.bos_id, aido.eos_id, aido.unk_id, aido.vocab_size) == (0, 1, 2, 3, 4, 16)
    assert aido.tokens[5:13] == ("A", "G", "C", "T", "U", "N", "[BOS]", "[EOS]")
    assert aido.standard_ids == range(5, 9)


@needs_data
def test_vocabularies_equal_the_listings():
    for kind, name, last in (("nt_v2", None, 0), ("generator", "GENERator_6mer_vocab_listing.txt", 4128)):
        if name:
            assert list(tokenizer_of(kind).tokens) == (Path(DATA) / "tokenizers" / name).read_text().split()[:last]
    listing = (Path(DATA) / "tokenizers/NucleotideTransformer_6mer_vocab_listing.txt").read_text().split()
    words = [text for text in listing if not text.startswith("<")]
    for kind in ("nt_v1", "nt_v2"):
        assert [text for text in tokenizer_of(kind).tokens if not text.startswith("<")] == words


VECTORS = [
    ("nt_v1", "ATTCCG" * 3, [367] * 3),
    ("nt_v2", "ATTCCG" * 3, [369] * 3),
    ("nt_v1", "ACGTGTACNTGCACGGANCGACTAGTCTGA", [737, 4100, 4102, 4104, 1935, 4103, 4100, 4104, 2856, 3488]),
    ("nt_v1", "acgtgt", [0]),
    ("nt_v1", "ACGTGTRYACGTGT", [737, 0, 737]),
    ("generator", "<s>ACGTNACGTNAC", [1, 0, 0]),
    ("generator", "<s>AAAAAATTTTTT", [1, 32, 1397]),
    ("generator", "ACGTNACGTNAC", [0, 0]),
    ("generator", "acgtgt", [0] * 6),
    ("aido_dna", "ACGTN", [5, 7, 6, 8, 10]),
    ("aido_dna", "acgRYUN", [4, 9, 10]),
]


@pytest.mark.parametrize("kind, text, ids", VECTORS)
def test_vectors(kind, text, ids):
    tokenizer = tokenizer_of(kind)
    assert tokenizer.encode(text, exact_case=True).tolist() == ids
    if text.isupper() and "<" not in text:
        assert tokenizer.encode(text).tolist() == tokenizer.encode(text.lower()).tolist() == ids


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(KINDS), st.text("ACGTACGTACGTNNRYU", max_size=120), st.text("ACGTacgtNnRyu- x\n", max_size=60))
def test_any_text_equals_plain_python(kind, sequence, text):
    tokenizer = tokenizer_of(kind)
    assert tokenizer.encode(sequence).tolist() == published(kind, sequence)
    assert tokenizer.encode(sequence.lower()).tolist() == published(kind, sequence)
    assert tokenizer.encode(text, exact_case=True).tolist() == published(kind, text)


@cache
def exported(kind, directory):
    transformers = pytest.importorskip("transformers")
    save_hf_tokenizer(tokenizer_of(kind), directory, max_length=1000)
    return transformers.AutoTokenizer.from_pretrained(directory)


def framed(tokenizer, ids):
    return [tokenizer.bos_id, *ids, *([tokenizer.eos_id] if tokenizer.add_eos else [])]


@needs_data
@pytest.mark.parametrize("name", GENOMES)
@pytest.mark.parametrize("kind", KINDS)
def test_real_genomes(kind, name, tmp_path_factory):
    """The native encoder, plain Python and the exported tokenizer, on the same real sequence, both strands."""
    tokenizer, theirs = tokenizer_of(kind), exported(kind, tmp_path_factory.getbasetemp() / kind)
    text = genome(name)
    for sequence in (text, reverse_complement(text.replace("U", "T").replace("u", "t"))):
        ids = published(kind, sequence.upper())
        assert tokenizer.encode(sequence).tolist() == ids
        assert theirs(sequence)["input_ids"] == framed(tokenizer, ids)
    assert tokenizer.encode(text, exact_case=True).tolist() == published(kind, text)


@pytest.mark.parametrize("kind", KINDS)
def test_hugging_face_folder(kind, tmp_path):
    tokenizer, theirs = tokenizer_of(kind), exported(kind, tmp_path)
    assert (len(theirs), theirs.model_max_length) == (len(tokenizer.tokens), 1000)
    assert (theirs.pad_token_id, theirs.mask_token_id, theirs.unk_token_id) == (tokenizer.pad_id, tokenizer.mask_id, tokenizer.unk_id)
    assert (theirs.cls_token_id or theirs.bos_token_id) == tokenizer.bos_id
    for sequence in ("", "A", "ACGTGTACNTGCACGGANCGACTAGTCTGA", "acgtnACGTNNNRYKACGTACGu", "-*ACGTAC"):
        assert theirs(sequence, add_special_tokens=False)["input_ids"] == published(kind, sequence.upper())
        assert theirs(sequence)["input_ids"] == framed(tokenizer, published(kind, sequence.upper()))
    mask = tokenizer.tokens[tokenizer.mask_id]
    around = [*published(kind, "ACGTAC"), tokenizer.mask_id, *published(kind, "AC")]
    assert theirs(f"ACGTAC{mask}AC", add_special_tokens=False)["input_ids"] == around
    plain = "ACGGTTACGTAA"
    assert theirs.decode(theirs(plain)["input_ids"], skip_special_tokens=True) == plain
    pair = theirs(plain, plain)["input_ids"]
    ids = published(kind, plain)
    assert pair == framed(tokenizer, ids) * 2
    assert load_hf_tokenizer(tmp_path) == tokenizer
    theirs.save_pretrained(tmp_path / "again")
    assert load_hf_tokenizer(tmp_path / "again") == tokenizer
    save_hf_tokenizer(tokenizer_of(kind, add_bos=False), tmp_path / "bare", 8)
    assert load_hf_tokenizer(tmp_path / "bare") == tokenizer_of(kind, add_bos=False)


@pytest.mark.parametrize("kind", ["nt_v1", "nt_v2"])
def test_transformers_own_class_gives_the_same(kind, tmp_path):
    """EsmTokenizer is the class that Nucleotide Transformer was published with."""
    transformers = pytest.importorskip("transformers")
    tokenizer = tokenizer_of(kind)
    (tmp_path / "vocab.txt").write_text("\n".join(tokenizer.tokens))
    roles = {"pad_token": "<pad>", "mask_token": "<mask>", "cls_token": "<cls>", "unk_token": "<unk>", "eos_token": None}
    esm = transformers.EsmTokenizer(str(tmp_path / "vocab.txt"), **roles)
    rng = np.random.default_rng(0)
    for alphabet in ("ACGT", "ACGTACGTACGTN", "ACGTACGTACGTACGTNRY", "ACGTacgtNRy"):
        for length in (0, 5, 6, 7, 100, 1000):
            text = "".join(rng.choice(list(alphabet), length))
            assert esm(text)["input_ids"] == [3, *published(kind, text)] == [3, *tokenizer.encode(text, exact_case=True).tolist()]


def test_folders_with_vocab_txt(tmp_path):
    for kind in KINDS:
        tokens = tokenizer_of(kind).tokens
        for lines in (tokens, [f"{text} {number}" for number, text in enumerate(tokens)]):
            (tmp_path / "vocab.txt").write_text("\n".join(lines))
            assert load_hf_tokenizer(tmp_path) == tokenizer_of(kind)
    (tmp_path / "vocab.txt").write_text("A\nC\n")
    with pytest.raises(CheckpointError, match=r"vocab.txt: not the vocabulary of a published tokenizer .* \(2 tokens; nt_v1"):
        load_hf_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_settings_and_round_trips(kind):
    tokenizer = tokenizer_of(kind)
    assert Tokenizer.from_dict(tokenizer.to_dict()) == tokenizer
    assert build_tokenizer(TokenizerConfig(**tokenizer.to_config())) == tokenizer
    assert TokenizerConfig(**TokenizerConfig(kind=kind).model_dump()) == TokenizerConfig(kind=kind)
    assert tokenizer.decode(tokenizer.encode("ACGTACGTACGT")) == "ACGTACGTACGT"
    assert len({tokenizer_of(other).digest for other in KINDS}) == len(KINDS)
    with pytest.raises(ValueError, match=f"k = 3, but kind={kind} has {tokenizer.k}: remove k"):
        TokenizerConfig(kind=kind, k=3)
    with pytest.raises(ValueError, match="base_order = ACGT, but kind="):
        TokenizerConfig(kind=kind, base_order="ACGT")
    with pytest.raises(DataError, match="exact_case is for published tokenizers, not kmer"):
        build_tokenizer(TokenizerConfig(kind="kmer")).encode("ACGT", exact_case=True)


ENCODER = {
    "data": {"train": "x", "sequence_length": 64, "masking": {"mlm_probability": 0.15}},
    "model": {"kind": "encoder", "num_layers": 1, "hidden_size": 64, "num_attention_heads": 4, "ffn_hidden_size": 64},
    "optim": {"lr": 1e-3},
    "train": {"run_dir": "x", "train_steps": 9, "micro_batch_size": 1, "global_batch_size": 1},
}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tokenizer": {"kind": "nt_v1"}, "data": {"sampling": "packed"}}, "packed needs tokens of a fixed number of bases"),
        ({"tokenizer": {"kind": "nt_v2", "add_eos": True}}, "add_eos: tokenizer.kind=nt_v2 ends samples with no token"),
        ({"tokenizer": {"kind": "aido_dna"}, "data": {"random_phase": True}}, "random_phase is for tokenizer.kind=kmer, not aido_dna"),
        ({"tokenizer": {"kind": "aido_dna"}, "data": {"sequence_length": 2}}, "sequence_length = 2 leaves no token for bases"),
        (
            {"tokenizer": {"add_eos": True}, "model": {"kind": "decoder"}, "data": {"masking": {"mlm_probability": 0.0}}},
            "tokenizer.add_eos is for the masked objective",
        ),
        ({"tokenizer": {"kind": "nt_v1", "k": 3}}, "k = 3, but kind=nt_v1 has 6: remove k"),
    ],
)
def test_rules(changes, message):
    tree = {name: {**section, **changes.get(name, {})} for name, section in ({"tokenizer": {}} | ENCODER).items()}
    with pytest.raises(ConfigError, match=message):
        config_from_dict(tree)


def test_known_batches():
    """[CLS] ... [SEP] leaves room for two tokens less; <cls> for one; N takes a place of its own, and the bases it pushes out are cut."""
    masking = {"mlm_probability": 0.5, "mask_replace_prob": 0.0, "random_replace_prob": 0.0}
    rules = {"name": "valid", "masking": masking}
    aido = make_stream(["ACGTNacRY", "GG"], tokenizer_of("aido_dna"), sequence_length=8, **rules)
    batch = aido.batch(np.arange(aido.num_samples))
    assert batch.labels.tolist() == [[2, 5, 7, 6, 8, 10, 5, 3], [2, 7, 4, 3, 0, 0, 0, 0], [2, 6, 6, 3, 0, 0, 0, 0]]
    assert aido.cut() == (0, 0)
    nt = make_stream(["ATTCCGNATTCCGATTCC"], tokenizer_of("nt_v1"), sequence_length=4, **rules)
    assert nt.batch(np.array([0])).labels.tolist() == [[3, 367, 4104, 367]]
    assert [str(locus) for locus in nt.locate(0)] == ["asm:c0:1-13(+)"]
    assert nt.cut() == (5, 1)
    causal = make_stream(["ATTCCGNAT"], tokenizer_of("nt_v2", add_bos=False), name="valid", sequence_length=4)
    batch = causal.batch(np.array([0]))
    assert (batch.tokens.tolist(), batch.labels.tolist()) == ([[369, 4106, 4102, 4103]], [[4106, 4102, 4103, 1]])
    assert batch.loss_mask.tolist() == [[0, 1, 1, 0]]
    own = make_stream(["ACGTA", "GG"], build_tokenizer(TokenizerConfig(add_eos=True)), sequence_length=6, sampling="packed", **rules)
    assert own.batch(np.array([0, 1])).labels.tolist() == [[1, 5, 6, 7, 8, 2], [1, 5, 2, 7, 7, 2]]


@st.composite
def cases(draw):
    return {
        "kind": draw(st.sampled_from(["nt_v1", "nt_v2", "aido_dna"])),
        "masked": draw(st.booleans()),
        "add_bos": draw(st.booleans()),
        "texts": draw(st.lists(st.text("ACGTACGTACGTacgtNnRy", min_size=1, max_size=150), min_size=1, max_size=6)),
        "sequence_length": draw(st.integers(3, 20)),
        "stride": draw(st.sampled_from([None, 1, 13, 40])),
        "reverse_complement": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "random_phase": draw(st.booleans()),
        "lowercase_weight": draw(st.sampled_from([1.0, 0.25])),
    }


@settings(max_examples=250, deadline=None)
@given(cases())
def test_batches_equal_plain_python(case):
    """Each sample against its window of the text, cut, turned and tokenized in plain Python."""
    case = dict(case)
    kind, masked, texts = case.pop("kind"), case.pop("masked"), case.pop("texts")
    tokenizer = tokenizer_of(kind, add_bos=case.pop("add_bos"), add_eos=masked and kind == "aido_dna")
    k, size, stride = tokenizer.k, case["sequence_length"], case["stride"]
    labels = size - (tokenizer.add_bos + tokenizer.add_eos if masked else 0)
    tokens_read = labels + (not masked and not tokenizer.add_bos)
    phase = case["random_phase"] = case["random_phase"] and k > 1
    if masked:
        case["masking"] = {"mlm_probability": 0.999999999, "mask_replace_prob": 1.0, "random_replace_prob": 0.0}
    windows = plain_windows(texts, k, tokens_read, stride or labels * k, (tokens_read - labels) * k, phase)
    if not windows:
        with pytest.raises(ConfigError, match="gives no sample"):
            make_stream(texts, tokenizer, **case)
        return
    stream = make_stream(texts, tokenizer, **case)
    assert stream.num_samples == len(windows)
    batch, cut, seen = stream.batch(np.arange(len(windows))), 0, []
    for row in range(len(windows)):
        locus = stream.locate(row)[0]
        number = int(locus.contig[1:])
        start, end = locus.start - 1000 * number, locus.end - 1000 * number
        within = [(first, last) for text, first, last in windows if text == number and first <= start and end <= last]
        read = texts[number][start:end]
        if locus.strand == "-":
            read = reverse_complement(read)
        pieces = plain_pieces(kind, read, case["lowercase_weight"])
        assert within and len(pieces) <= tokens_read
        ids, weights = [ids for ids, _ in pieces], [weight for _, weight in pieces]
        if len(pieces) < tokens_read:  # then it reads all that its window holds behind the phase
            assert any(end - start == min(last - first - locus.phase, tokens_read * k) for first, last in within)
        if masked:
            ids, weights = framed_plain(tokenizer, ids, weights)
            ids, weights = padded(ids, size, tokenizer.pad_id), padded(weights, size, 0.0)
            assert batch.labels[row].tolist() == ids
            assert batch.loss_mask[row].tolist() == pytest.approx(weights)
            assert batch.tokens[row].tolist() == [tokenizer.mask_id if weight else i for i, weight in zip(ids, weights, strict=True)]
        else:
            ids, weights = ([tokenizer.bos_id, *ids], [0.0, *weights]) if tokenizer.add_bos else (ids, weights)
            ids, weights = padded(ids, size + 1, tokenizer.pad_id), padded(weights, size + 1, 0.0)
            assert batch.tokens[row].tolist() == ids[:-1]
            assert batch.labels[row].tolist() == ids[1:]
            assert batch.loss_mask[row].tolist() == pytest.approx(weights[1:])
        seen.append((number, start, end))
        cut += max(min(last - first - locus.phase, tokens_read * k) for first, last in within) - (end - start) if stride is None else 0
    if stride is None and not phase and tokens_read == labels:
        assert stream.cut()[0] == cut == sum(map(len, texts)) - sum(end - start for _, start, end in seen)
    report = stream.report()
    assert report["bases"] == report["bases_used"] + sum(report["bases_left_out"].values())


def plain_windows(texts, k, tokens_read, stride, context, phase):
    slack = k - 1 if phase else 0
    size, windows = tokens_read * k + slack, []
    for number, text in enumerate(texts):
        start, read = 0, 0
        while start + size <= len(text):
            windows.append((number, start, start + size))
            start, read = start + stride, start + size
        if len(text) - start >= 1 + context + slack and len(text) > read:
            windows.append((number, start, len(text)))
    return windows


def plain_pieces(kind, text, lowercase_weight):
    """(id, loss weight) of each token: the mean over its bases, 0 where they are not ACGTU."""
    tokens, at, pieces = tokenizer_of(kind).tokens, 0, []
    for value in published(kind, text.upper()):
        word = tokens[value]
        if value == tokenizer_of(kind).unk_id:
            length = next((n for n, base in enumerate(text[at:]) if base.upper() in "ACGTN"), len(text) - at)
        else:
            length = len(word)
            assert text[at : at + length].upper() == word
        part = text[at : at + length]
        plain = set(part.upper()) <= set("ACGT")
        pieces.append((value, sum(lowercase_weight if base.islower() else 1.0 for base in part) / length if plain else 0.0))
        at += length
    assert at == len(text)
    return pieces


def framed_plain(tokenizer, ids, weights):
    front, behind = [tokenizer.bos_id] * tokenizer.add_bos, [tokenizer.eos_id] * tokenizer.add_eos
    return [*front, *ids, *behind], [*([0.0] * len(front)), *weights, *([0.0] * len(behind))]


def padded(values, size, filler):
    return [*values, *([filler] * (size - len(values)))]


@pytest.mark.parametrize("kind", ["nt_v1", "nt_v2", "generator", "aido_dna"])
def test_random_replacement_draws_standard_tokens_only(kind):
    text = "".join(np.random.default_rng(1).choice(list("ACGT"), 60_000))
    masking = {"mlm_probability": 0.99, "mask_replace_prob": 0.0, "random_replace_prob": 1.0}
    tokenizer = tokenizer_of(kind)
    stream = make_stream([text], tokenizer, name="valid", sequence_length=500, masking=masking)
    batch = stream.batch(np.arange(stream.num_samples))
    drawn = set(batch.tokens[batch.loss_mask > 0].tolist())
    assert drawn <= set(tokenizer.standard_ids)
    assert len(drawn) > 0.5 * len(tokenizer.standard_ids)
