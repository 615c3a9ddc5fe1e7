"""Vocabularies, ids and Hugging Face folders."""

import itertools
import json
import random

import numpy as np
import pytest
from slow import Slow

from dnapretrain.config import TokenizerConfig
from dnapretrain.data.tokens.files import load_hf_tokenizer, save_hf_tokenizer
from dnapretrain.data.tokens.tokenizers import Tokenizer, build_tokenizer
from dnapretrain.errors import CheckpointError, DataError

CONFIGS = [TokenizerConfig(kind="nucleotide", base_order=order, add_bos=bos) for order in ("ACGT", "ATCG") for bos in (True, False)]
CONFIGS += [TokenizerConfig(kind="kmer", k=k, base_order=("ACGT", "ATCG", "AGCT")[k % 3], add_bos=k > 3) for k in range(1, 9)]
CONFIGS += [TokenizerConfig(base_order="AGCT", add_eos=True), TokenizerConfig(kind="kmer", k=3, add_bos=False, add_eos=True)]


def random_sequence(length, seed, alphabet="ACGTACGTACGTACGTacgtNnRYryU"):
    return "".join(random.Random(seed).choices(alphabet, k=length))


def test_vocabulary_order():
    nucleotide = build_tokenizer(TokenizerConfig(base_order="ATCG"))
    assert nucleotide.tokens == ("<pad>", "<bos>", "<eos>", "<unk>", "<mask>", "A", "T", "C", "G", "N")
    assert (nucleotide.k, nucleotide.vocab_size, nucleotide.bases_per_token) == (1, 10, 1)
    pairs = build_tokenizer(TokenizerConfig(kind="kmer", k=2, base_order="ATCG"))
    assert pairs.tokens[5:] == tuple("".join(pair) for pair in itertools.product("ATCG", repeat=2))
    assert pairs.vocab_size == 21
    assert [pairs.tokens[i] for i in (pairs.pad_id, pairs.bos_id, pairs.eos_id, pairs.unk_id, pairs.mask_id)] == list(pairs.tokens[:5])


def test_known_ids():
    nucleotide = build_tokenizer(TokenizerConfig())
    assert nucleotide.encode("ACGTNacgtnRU-").tolist() == [5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 3, 3, 3]
    sixmers = build_tokenizer(TokenizerConfig(kind="kmer", k=6, base_order="ATCG"))
    assert sixmers.encode("AAAAAAaaaaatGGGGGGAAANAAAAAAA").tolist() == [5, 6, 5 + 4**6 - 1, 3, 3]
    assert sixmers.encode("").tolist() == []


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_encode_equals_plain_python(config):
    tokenizer = build_tokenizer(config)
    plain = Slow([], config.kind, tokenizer.k, config.base_order)
    assert list(tokenizer.tokens) == plain.vocabulary()
    for length in range(0, 200, 7):
        sequence = random_sequence(length, length)
        expected = [token for token, _ in plain.encode(sequence)]
        assert tokenizer.encode(sequence).tolist() == expected
        assert tokenizer.encode(sequence.encode()).tolist() == expected
        strided = np.repeat(np.frombuffer(sequence.encode(), np.uint8), 2)[::2]
        assert tokenizer.encode(strided).tolist() == expected


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_decode_and_round_trips(config):
    tokenizer = build_tokenizer(config)
    sequence = random_sequence(840, 1, "ACGT")
    assert tokenizer.decode(tokenizer.encode(sequence)) == sequence
    assert tokenizer.decode([1, 5, 2]) == f"<bos>{tokenizer.tokens[5]}<eos>"
    assert Tokenizer.from_dict(json.loads(json.dumps(tokenizer.to_dict()))) == tokenizer


def test_digests_tell_tokenizers_apart():
    digests = {build_tokenizer(config).digest for config in CONFIGS}
    assert len(digests) == len(CONFIGS)
    assert all(len(digest) == 32 for digest in digests)


def test_user_errors():
    tokenizer = build_tokenizer(TokenizerConfig())
    with pytest.raises(DataError, match=r"'é' at position 2"):
        tokenizer.encode("ACé")
    with pytest.raises(DataError, match="token id 10 is outside the vocabulary of 10"):
        tokenizer.decode([10])
    with pytest.raises(DataError, match="token id -1"):
        tokenizer.decode([-1])
    for values in ({"kind": "bpe"}, {"kind": "kmer", "k": 9}, {"kind": "kmer", "k": 3}, {}):
        with pytest.raises(CheckpointError, match="not a tokenizer of ours"):
            Tokenizer.from_dict(values)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_hugging_face_folder(config, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = build_tokenizer(config)
    save_hf_tokenizer(tokenizer, tmp_path, max_length=1024)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.model_max_length == 1024
    assert len(theirs) == tokenizer.vocab_size
    ids = (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id, theirs.unk_token_id, theirs.mask_token_id)
    assert ids == (0, 1, 2, 3, 4)
    bos = [tokenizer.bos_id] if config.add_bos else []
    eos = [tokenizer.eos_id] if config.add_eos else []
    for length in (0, 1, 5, 6, 7, 100, 333):
        sequence = random_sequence(length, length)
        assert theirs(sequence)["input_ids"] == bos + tokenizer.encode(sequence).tolist() + eos
        assert theirs(sequence, add_special_tokens=False)["input_ids"] == tokenizer.encode(sequence).tolist()
    plain = random_sequence(840, 3, "ACGT")
    assert theirs.decode(theirs(plain)["input_ids"], skip_special_tokens=True) == plain
    assert theirs.decode(theirs(plain)["input_ids"]) == ("<bos>" if config.add_bos else "") + plain + ("<eos>" if config.add_eos else "")
    batch = theirs([plain, plain[:12]], padding=True)
    assert batch["input_ids"][1][-1] == tokenizer.pad_id
    assert load_hf_tokenizer(tmp_path) == tokenizer
    theirs.save_pretrained(tmp_path / "again")
    assert load_hf_tokenizer(tmp_path / "again") == tokenizer


def test_foreign_folders_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_hf_tokenizer(tmp_path)
    for content in ("{", "[]", '{"model": {"vocab": {}}}', '{"model": {"vocab": {"a": 0}}, "post_processor": null}'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(CheckpointError, match="not a tokenizer that dnapretrain wrote"):
            load_hf_tokenizer(tmp_path)
    save_hf_tokenizer(build_tokenizer(TokenizerConfig()), tmp_path, 8)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"]["X"] = 10
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="not the vocabulary"):
        load_hf_tokenizer(tmp_path)
