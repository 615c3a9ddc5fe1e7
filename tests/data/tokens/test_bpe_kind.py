"""tokenizer.kind=bpe from file to batch, checkpoint and exported folder, against the `tokenizers` library."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import training
from hypothesis import given, settings
from hypothesis import strategies as st
from slow import reverse_complement
from streams import make_stream
from test_bpe import library, library_ids, vocabulary_of_merges
from test_published_tokenizers import DATA, ENCODER, GENOMES, framed, framed_plain, genome, needs_data, padded, plain_windows

from dnapretrain.config import TokenizerConfig
from dnapretrain.config_file import config_from_dict
from dnapretrain.convert.hf import from_hf, to_hf
from dnapretrain.convert.native import find_checkpoint, read_config, read_tokenizer
from dnapretrain.data.tokens.bpe import BpeVocabulary, load_bpe, train_bpe
from dnapretrain.data.tokens.files import load_hf_tokenizer, save_hf_tokenizer
from dnapretrain.data.tokens.tokenizers import Tokenizer, build_tokenizer
from dnapretrain.errors import CheckpointError, ConfigError, DataError


@cache
def small_vocabulary() -> BpeVocabulary:
    """Tokens of 1 to 8 bases, so that windows of 5 bases a token have too many of some and too few of others."""
    merges = "A+A C+G AA+AA AAAA+AAAA T+G TG+T CG+CG C+A CGCG+TGT CA+TG G+G T+T GG+TT"
    return vocabulary_of_merges([tuple(merge.split("+")) for merge in merges.split()])


@cache
def small_library():
    return library(small_vocabulary())


@pytest.fixture
def small_file(tmp_path) -> Path:
    small_vocabulary().save(tmp_path / "bpe.json")
    return tmp_path / "bpe.json"


def tokenizer_of(path, **settings) -> Tokenizer:
    return build_tokenizer(TokenizerConfig(kind="bpe", file=path, **settings))


def in_memory(**settings) -> Tokenizer:
    return Tokenizer("bpe", settings.pop("k", 5), "ACGT", settings.pop("add_bos"), settings.pop("add_eos"), bpe=small_vocabulary())


# Batches


def plain_pieces(text, lowercase_weight):
    """(id, loss weight) of each token of the library: the mean over its bases, 0 for [UNK]."""
    at, pieces = 0, []
    for value in library_ids(small_library(), text.upper()):
        length = 1 if value == 0 else len(small_vocabulary().tokens[value])
        part = text[at : at + length]
        pieces.append((value, sum(lowercase_weight if base.islower() else 1.0 for base in part) / length if value else 0.0))
        at += length
    assert at == len(text)
    return pieces


def whole_window(text, windows, locus, most):
    """What the one window that can be the sample's holds, as read."""
    (read,) = [
        text[first + locus["phase"] : min(first + locus["phase"] + most, last)]
        if locus["strand"] == "+"
        else reverse_complement(text[max(last - locus["phase"] - most, first) : last - locus["phase"]])
        for first, last in windows
        if (locus["strand"] == "+" and first + locus["phase"] == locus["start"])
        or (locus["strand"] == "-" and last - locus["phase"] == locus["end"])
    ]
    return read


@st.composite
def cases(draw):
    words = st.sampled_from(["AAAAAAAA", "CGCGTGT", "ACGT", "a", "cgcg", "TGT", "N", "nn", "R", "GGTT", "catg", "T"])
    return {
        "k": draw(st.sampled_from([2, 5, 8])),
        "masked": draw(st.booleans()),
        "add_bos": draw(st.booleans()),
        "add_eos": draw(st.booleans()),
        "texts": draw(st.lists(st.lists(words, min_size=1, max_size=40).map("".join), min_size=1, max_size=5)),
        "sequence_length": draw(st.integers(3, 20)),
        "stride": draw(st.sampled_from([None, 1, 13, 40])),
        "reverse_complement": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "random_phase": draw(st.booleans()),
        "lowercase_weight": draw(st.sampled_from([1.0, 0.25])),
    }


@settings(max_examples=250, deadline=None)
@given(cases())
def test_batches_equal_the_library(case):
    """Each sample: its whole window, turned and encoded by the `tokenizers` library, as many tokens as there is room for."""
    case = dict(case)
    masked, texts, k, add_bos = case.pop("masked"), case.pop("texts"), case.pop("k"), case.pop("add_bos")
    tokenizer = in_memory(k=k, add_bos=add_bos, add_eos=case.pop("add_eos") and masked)
    size, stride = case["sequence_length"], case["stride"]
    labels = size - (tokenizer.add_bos + tokenizer.add_eos if masked else 0)
    room = labels + (not masked and not tokenizer.add_bos)
    if masked:
        case["masking"] = {"mlm_probability": 0.999999999, "mask_replace_prob": 1.0, "random_replace_prob": 0.0}
    windows = plain_windows(texts, k, room, stride or labels * k, (room - labels) * k, case["random_phase"])
    if not windows:
        with pytest.raises(ConfigError, match="gives no sample"):
            make_stream(texts, tokenizer, **case)
        return
    stream = make_stream(texts, tokenizer, **case)
    assert stream.num_samples == len(windows)
    batch, cut = stream.batch(np.arange(len(windows))), 0
    for row in range(len(windows)):
        locus = stream.locate(row)[0]
        number = int(locus.contig[1:])
        at = {"start": locus.start - 1000 * number, "end": locus.end - 1000 * number, "strand": locus.strand, "phase": locus.phase}
        of_text = [(first, last) for text, first, last in windows if text == number]
        read = whole_window(texts[number], of_text, at, room * k)
        pieces = plain_pieces(read, case["lowercase_weight"])[:room]
        ids, weights = map(list, zip(*pieces, strict=True))
        length = sum(1 if value == 0 else len(tokenizer.tokens[value]) for value in ids)
        assert at["end"] - at["start"] == length
        cut += len(read) - length
        if masked:
            ids, weights = framed_plain(tokenizer, ids, weights)
            ids, weights = padded(ids, size, 3), padded(weights, size, 0.0)
            assert batch.labels[row].tolist() == ids
            assert batch.loss_mask[row].tolist() == pytest.approx(weights)
            assert batch.tokens[row].tolist() == [4 if weight else value for value, weight in zip(ids, weights, strict=True)]
        else:
            ids, weights = ([1, *ids], [0.0, *weights]) if add_bos else (ids, weights)
            ids, weights = padded(ids, size + 1, 3), padded(weights, size + 1, 0.0)
            assert batch.tokens[row].tolist() == ids[:-1]
            assert batch.labels[row].tolist() == ids[1:]
            assert batch.loss_mask[row].tolist() == pytest.approx(weights[1:])
    assert stream.cut()[0] == cut
    report = stream.report()
    assert report["bases"] == report["bases_used"] + sum(report["bases_left_out"].values())


def test_random_replacement_draws_tokens_of_bases():
    text = "".join(random.Random(1).choices("ACGT", k=20_000))
    masking = {"mlm_probability": 0.99, "mask_replace_prob": 0.0, "random_replace_prob": 1.0}
    tokenizer = in_memory(add_bos=True, add_eos=True)
    stream = make_stream([text], tokenizer, name="valid", sequence_length=200, masking=masking)
    batch = stream.batch(np.arange(stream.num_samples))
    assert set(batch.tokens[batch.loss_mask > 0].tolist()) == set(range(5, tokenizer.vocab_size)) == set(tokenizer.standard_ids)
    assert set(batch.tokens[:, 0].tolist()) == {1}


# The tokenizer and its files


def test_ids_roles_and_round_trips(small_file, tmp_path):
    tokenizer = tokenizer_of(small_file)
    special = (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.mask_id)
    assert (special, tokenizer.vocab_size, tokenizer.bases_per_token, tokenizer.is_variable) == ((0, 1, 2, 3, 4), 22, 5, True)
    ids = tokenizer.encode("CGCGTGTaaaaNCA")
    assert ids.tolist() == library_ids(small_library(), "CGCGTGTAAAANCA")
    assert tokenizer.decode(ids) == "CGCGTGTAAAA[UNK]CA"
    assert Tokenizer.from_dict(json.loads(json.dumps(tokenizer.to_dict()))) == tokenizer
    assert build_tokenizer(TokenizerConfig(**tokenizer.to_config())) == tokenizer
    (tmp_path / "checkpoint.json").write_text(json.dumps(tokenizer.to_dict()))
    assert tokenizer_of(tmp_path / "checkpoint.json") == tokenizer
    other = vocabulary_of_merges(small_vocabulary().merges[:-1])
    same_tokens = BpeVocabulary(small_vocabulary().tokens, small_vocabulary().merges[:-1])
    digests = {Tokenizer("bpe", 5, "ACGT", True, bpe=vocabulary).digest for vocabulary in (small_vocabulary(), other, same_tokens)}
    assert len(digests | {tokenizer_of(small_file, k=4).digest, tokenizer_of(small_file, add_eos=True).digest}) == 5
    assert tokenizer.digest in digests


@settings(max_examples=200, deadline=None)
@given(st.text("ACGTACGTacgtNnRx- \n\t", max_size=60), st.sampled_from(["", "[MASK]", "[SEP]A", "[mask]"]))
def test_exact_case_is_the_library(text, special):
    tokenizer = in_memory(add_bos=True, add_eos=True)
    assert tokenizer.encode(text + special + text, exact_case=True).tolist() == library_ids(small_library(), text + special + text)


@pytest.mark.parametrize("ends", [(True, True), (True, False), (False, False)])
def test_hugging_face_folder(small_file, tmp_path, ends):
    transformers = pytest.importorskip("transformers")
    tokenizer = tokenizer_of(small_file, add_bos=ends[0], add_eos=ends[1])
    save_hf_tokenizer(tokenizer, tmp_path / "hf", max_length=1000)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert (len(theirs), theirs.model_max_length, theirs.pad_token_id, theirs.mask_token_id) == (22, 1000, 3, 4)
    assert (theirs.cls_token_id, theirs.sep_token_id, theirs.unk_token_id) == (1, 2, 0)
    for text in ("", "A", "CGCGTGTaaaaaaNNRYcgcgAAAAAAAAAA", "-*ACGT"):
        ids = tokenizer.encode(text).tolist()
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids
        assert theirs(text)["input_ids"] == [1] * ends[0] + ids + [2] * ends[1]
    assert theirs.decode(theirs("CGCGTGTAAAAC")["input_ids"], skip_special_tokens=True) == "CGCGTGTAAAAC"
    theirs.save_pretrained(tmp_path / "again")
    for folder in (tmp_path / "hf", tmp_path / "again"):
        loaded = load_hf_tokenizer(folder)
        assert loaded == tokenizer
        assert build_tokenizer(TokenizerConfig(**loaded.to_config())) == tokenizer  # its file is usable as tokenizer.file
    content = json.loads((tmp_path / "hf/tokenizer.json").read_text())
    content["model"]["dropout"] = 0.1
    (tmp_path / "hf/tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"tokenizer.json: model.dropout is set"):
        load_hf_tokenizer(tmp_path / "hf")


@cache
def published_files(directory):
    transformers = pytest.importorskip("transformers")
    tokenizer = tokenizer_of(Path(DATA) / "tokenizers/DNABERT2_tokenizer.json", add_eos=True)
    save_hf_tokenizer(tokenizer, directory, max_length=512)
    return tokenizer, library(tokenizer.bpe), transformers.AutoTokenizer.from_pretrained(directory)


@needs_data
def test_dnabert2_vectors(tmp_path_factory):
    tokenizer, _, theirs = published_files(tmp_path_factory.getbasetemp() / "dnabert2")
    assert (tokenizer.vocab_size, tokenizer.standard_ids, tokenizer.pad_id, tokenizer.mask_id) == (4096, range(5, 4096), 3, 4)
    for text, ids in {
        "ACGTN" * 3: [1, 5, 6, 1049, 0, 5, 6, 1049, 0, 5, 6, 1049, 0, 2],
        "AAAACCCCGGGGTTTTACGTNACGTNNNNACGTTGCAACGTACGT": [
            *(1, 39, 102, 92, 69, 6, 1049, 0, 5, 6, 1049, 0, 0, 0, 0, 5, 134, 66, 194, 6, 1049, 2),
        ],
    }.items():
        assert tokenizer.encode(text).tolist() == tokenizer.encode(text.lower()).tolist() == ids[1:-1]
        assert theirs(text)["input_ids"] == ids
    assert framed(tokenizer, tokenizer.encode("[MASK]A", exact_case=True).tolist()) == [1, 4, 5, 2]
    assert tokenizer.encode("NNNN").tolist() == tokenizer.encode("acgt", exact_case=True).tolist() == [0, 0, 0, 0]
    folder = tmp_path_factory.mktemp("published")
    (folder / "tokenizer.json").write_bytes((Path(DATA) / "tokenizers/DNABERT2_tokenizer.json").read_bytes())
    assert load_hf_tokenizer(folder) == tokenizer


@needs_data
@pytest.mark.parametrize("name", GENOMES)
def test_real_genomes(name, tmp_path_factory):
    tokenizer, reference, theirs = published_files(tmp_path_factory.getbasetemp() / "dnabert2")
    text = genome(name)
    for sequence in (text, reverse_complement(text.replace("U", "T").replace("u", "t"))):
        ids = library_ids(reference, sequence.upper())
        assert tokenizer.encode(sequence).tolist() == ids
        assert theirs(sequence)["input_ids"] == framed(tokenizer, ids)
        assert tokenizer.encode(sequence, exact_case=True).tolist() == library_ids(reference, sequence)


# Settings


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tokenizer": {"kind": "bpe"}}, "tokenizer.kind=bpe needs its merges. Set tokenizer.file"),
        ({"tokenizer": {"kind": "kmer", "file": "x.json"}}, "tokenizer.file = x.json is for tokenizer.kind=bpe, not kmer"),
        ({"tokenizer": {"kind": "bpe", "file": "x", "base_order": "ATCG"}}, "base_order = ATCG, but kind=bpe"),
        ({"tokenizer": {"kind": "bpe", "file": "x"}, "data": {"sampling": "packed"}}, "packed needs tokens of a fixed number of bases"),
        ({"tokenizer": {"kind": "bpe", "file": "x"}, "data": {"sequence_length": 2}}, "sequence_length = 2 leaves no token for bases"),
        (
            {
                "tokenizer": {"kind": "bpe", "file": "x", "add_eos": True},
                "model": {"kind": "decoder"},
                "data": {"masking": {"mlm_probability": 0.0}},
            },
            "tokenizer.add_eos is for the masked objective",
        ),
    ],
)
def test_settings_that_do_not_fit(changes, message):
    with pytest.raises(ConfigError, match=message):
        config_from_dict({**ENCODER, **{section: {**ENCODER.get(section, {}), **values} for section, values in changes.items()}})


def test_samples_end_with_sep_where_the_objective_is_masked():
    tree = {**ENCODER, "tokenizer": {"kind": "bpe", "file": "x"}}
    masked = config_from_dict(tree).tokenizer
    assert (masked.add_bos, masked.add_eos, masked.k, masked.bases_per_token) == (True, True, 5, 5)
    assert not config_from_dict({**tree, "tokenizer": {"kind": "bpe", "file": "x", "add_eos": False}}).tokenizer.add_eos
    tree = {**tree, "model": {**ENCODER["model"], "kind": "decoder"}, "data": {"train": "x", "sequence_length": 64}}
    causal = config_from_dict(tree).tokenizer
    assert (causal.add_bos, causal.add_eos) == (True, False)


def test_files_that_cannot_be_used(small_file, tmp_path):
    with pytest.raises(ConfigError, match=r"tokenizer.file = .*gone.json: no such file.* the tokenizer.json of a checkpoint"):
        tokenizer_of(tmp_path / "gone.json")
    content = json.loads(small_file.read_text())
    vocab = content["model"]["vocab"]
    vocab["[MASK]"], vocab["AA"] = vocab["AA"], vocab["[MASK]"]
    (tmp_path / "mixed.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"BPE tokens 4 to 21 stand for bases, but \[MASK\] is among them"):
        tokenizer_of(tmp_path / "mixed.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(DataError, match=r"list.json: not a tokenizer.json with a BPE model"):
        tokenizer_of(tmp_path / "list.json")
    values = in_memory(add_bos=True, add_eos=True).to_dict()
    del values["bpe"]["model"]["vocab"]["T"]
    for changed in (values, {**values, "bpe": None}, {"kind": "bpe"}):
        with pytest.raises(CheckpointError, match="not a tokenizer of ours") as caught:
            Tokenizer.from_dict(changed)
        assert len(str(caught.value)) < 400


# A run


def test_training_from_a_learned_vocabulary(ranks, tiny_config, small_shard, tmp_path):
    path = tmp_path / "learned.json"
    train_bpe([small_shard], path, vocab_size=120)
    encoder = {"model.kind": "encoder", "data.masking": {"mlm_probability": 0.15}, "model.normalization": "LayerNorm"}
    esm = {"model.attention_bias": True, "model.num_query_groups": None, "model.activation": "gelu", "model.ffn_in_bias": True}
    tree = tiny_config(**encoder, **esm, **{"model.ffn_out_bias": True, "model.num_layers": 2})
    tree["tokenizer"] = {"kind": "bpe", "file": str(path)}
    result = ranks.run(1, training.train, tree=tree, until=3, save=True)[0]
    assert len(result.losses) == 3 and all(2 < loss < 7 for loss in result.losses)
    tokenizer = tokenizer_of(path, add_eos=True)
    resumed = ranks.run(1, training.train, tree=tree, until=5)[0]
    assert len(resumed.losses) == 2

    path.rename(tmp_path / "moved.json")  # a checkpoint holds what it needs
    checkpoint = find_checkpoint(tree["train"]["run_dir"])
    assert read_tokenizer(checkpoint) == tokenizer
    config = read_config(checkpoint)
    with pytest.raises(ConfigError, match="no such file"):
        build_tokenizer(config.tokenizer)
    overridden = read_config(checkpoint, [f"tokenizer.file={checkpoint / 'tokenizer.json'}"])
    assert build_tokenizer(overridden.tokenizer) == tokenizer
    again = ranks.run(1, training.train, tree=overridden.model_dump(mode="json"), until=5)[0]
    assert again.losses == resumed.losses

    to_hf(checkpoint, tmp_path / "hf")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = "".join(random.Random(2).choices("ACGTN", k=500))
    assert theirs(text)["input_ids"] == framed(tokenizer, tokenizer.encode(text).tolist())
    assert load_bpe(tmp_path / "hf/tokenizer.json") == tokenizer.bpe
    from_hf(tmp_path / "hf", tmp_path / "back")
    assert read_tokenizer(tmp_path / "back") == build_tokenizer(read_config(tmp_path / "back").tokenizer) == tokenizer
