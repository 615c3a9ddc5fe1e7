"""A model as tokens in, hidden states out: batches against one sequence at a time, specials, long sequences, token dropout."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from families import NT_V1, bpe_of, random_native, run_config, sizes
from small_folders import FAMILIES, write_folder

from dnapretrain.adapt.backbones.backbone import load_backbone, open_backbone
from dnapretrain.adapt.backbones.encoding import SequenceEncoder
from dnapretrain.config import TokenizerConfig
from dnapretrain.convert.native_writer import write_native
from dnapretrain.data.tokens.tokenizers import build_tokenizer
from dnapretrain.errors import ConfigError, DataError

SEQUENCES = ("ACGTTGCATGCATTGACCA" * 4, "ACGTNACGT", "TTGACAGCTATAATCGCGGCGCATAAGGCTT", "ACGTGA")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: write_folder(tmp_path_factory.mktemp(name), name)[0] for name in FAMILIES}


def tokenizer_of(kind, **settings):
    return bpe_of(None) if kind == "bpe" else build_tokenizer(TokenizerConfig.model_validate({"kind": kind, **settings}))


def encoder_of(kind, is_encoder=True, max_tokens=1000, on_long="error", **settings):
    return SequenceEncoder(tokenizer_of(kind, **settings), is_encoder, max_tokens, on_long)


@pytest.mark.parametrize("name", FAMILIES)
def test_batches_give_what_one_sequence_without_padding_gives(name, folders):
    """All layers, against transformers' own model called with one row of tokens; bf16 keeps their direction."""
    backbone = load_backbone(folders[name])
    half = load_backbone(folders[name], dtype="bf16")
    assert half.hidden_size == backbone.hidden_size and half.dtype == torch.bfloat16
    layers = range(backbone.num_layers + 1)
    encoded = backbone.encoder.encode_all(SEQUENCES)
    seen = []
    for batch in backbone.encoder.batches(encoded, tokens_per_batch=2 * max(len(one.ids) for one in encoded)):
        assert batch.input_ids.numel() <= 2 * max(len(one.ids) for one in encoded)
        states = backbone.hidden_states(batch, layers)
        low = half.hidden_states(batch)[0].float()
        logits = backbone.logits(batch)
        for at, row in enumerate(batch.rows.tolist()):
            seen.append(row)
            one = encoded[row]
            with torch.no_grad():
                alone = backbone.model(torch.from_numpy(one.ids)[None], output_hidden_states=True)
            for layer in layers:
                assert states[layer][at, : len(one.ids)] == pytest.approx(alone.hidden_states[layer][0].numpy(), abs=1e-4)
            assert logits[at, : len(one.ids)] == pytest.approx(alone.logits[0].numpy(), abs=1e-4)
            last = states[-1][at, : len(one.ids)]
            assert torch.cosine_similarity(low[at, : len(one.ids)], last, dim=-1).min() > 0.99
            assert batch.bases_mask[at].sum() == one.num_tokens and batch.attention_mask[at].sum() == len(one.ids)
    assert sorted(seen) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("kind", "is_encoder", "settings", "specials", "texts"),
    [
        ("nt_v1", True, {}, (1, 0), ("<cls>", "ACGTGA", "N", "C")),
        ("generator", False, {}, (1, 0), ("<s>", "ACGTGA")),  # NC is no whole 6-mer
        ("aido_dna", True, {}, (1, 1), ("[CLS]", *"ACGTGANC", "[SEP]")),
        ("kmer", False, {"k": 3, "add_bos": False}, (0, 0), ("ACG", "TGA")),
        ("nucleotide", True, {"add_eos": True}, (1, 1), ("<bos>", *"ACGTGANC", "<eos>")),
        ("nucleotide", False, {"add_eos": True}, (1, 0), ("<bos>", *"ACGTGANC")),  # <eos> is for the masked objective
    ],
)
def test_specials_are_those_of_training(kind, is_encoder, settings, specials, texts):
    encoder = encoder_of(kind, is_encoder, **settings)
    [one] = encoder.encode("ACGTGANC")
    assert tuple(encoder.tokenizer.tokens[value] for value in one.ids) == texts
    assert one.specials == specials
    batch = encoder.collate([one, *encoder.encode("ACGTGANC" * 3, row=1)])
    assert batch.bases_mask[0].nonzero().flatten().tolist() == list(range(specials[0], len(texts) - specials[1]))
    assert (batch.input_ids[0, len(texts) :] == encoder.tokenizer.pad_id).all() and not batch.attention_mask[0, len(texts) :].any()


def test_bases_of_no_whole_kmer_are_cut_and_counted():
    encoder = encoder_of("generator", False)
    assert [len(one.ids) for one in encoder.encode_all(["ACGTGA", "ACGTGAC", "ACG", "ACGTGAACGTGAAAAA"])] == [2, 2, 2, 3]
    assert encoder.counts.lines() == ["2 of 4 sequences end in 5 bases of no whole token: cut"]
    assert encoder.encode("ACG")[0].ids[1] == encoder.tokenizer.unk_id  # nothing else is left of it


def test_a_long_sequence_is_an_error_that_names_it():
    encoder = encoder_of("aido_dna", max_tokens=10)
    assert len(encoder.encode("ACGTACGT")[0].ids) == 10
    with pytest.raises(DataError, match=r"sequence 2 \(chr7\) has 9 bases = 11 tokens with specials; the model reads 10.*--on-long"):
        encoder.encode_all(["ACGT", "ACGTACGTA"], ["a", "chr7"])
    with pytest.raises(DataError, match="sequence 1 has no bases"):
        encoder.encode("")
    with pytest.raises(ConfigError, match="no room"):
        encoder_of("aido_dna", max_tokens=2)
    with pytest.raises(ConfigError, match="on_long"):
        encoder_of("aido_dna", on_long="drop")


def test_long_sequences_truncated_or_in_windows():
    cut = encoder_of("aido_dna", max_tokens=10, on_long="truncate")
    assert [cut.tokenizer.decode(one.ids) for one in cut.encode_all(["ACGTACGTAC", "AC"])] == ["[CLS]ACGTACGT[SEP]", "[CLS]AC[SEP]"]
    assert cut.counts.lines() == ["1 of 2 sequences were truncated: 2 tokens were not read"]
    parts = encoder_of("aido_dna", max_tokens=10, on_long="window")
    texts = [(one.row, parts.tokenizer.decode(one.ids)) for one in parts.encode_all(["AC", "ACGTACGTACGGGGTTT"], first_row=5)]
    assert texts == [(5, "[CLS]AC[SEP]"), (6, "[CLS]ACGTAC[SEP]"), (6, "[CLS]GTACGG[SEP]"), (6, "[CLS]GGTTT[SEP]")]
    assert parts.counts.lines() == ["1 of 2 sequences were read in 3 windows"]


def test_batches_hold_all_within_their_budget():
    encoder = encoder_of("nucleotide", add_eos=True)
    lengths = np.random.default_rng(0).integers(1, 60, 50)
    batches = list(encoder.batches(encoder.encode_all(["A" * length for length in lengths]), tokens_per_batch=128))
    assert all(batch.input_ids.numel() <= 128 for batch in batches)
    rows = np.concatenate([batch.rows for batch in batches])
    assert sorted(rows.tolist()) == list(range(50)) and [int(lengths[row]) for row in rows] == sorted(lengths.tolist(), reverse=True)
    assert len(list(encoder.batches(encoder.encode("A" * 500), tokens_per_batch=1))) == 1
    with pytest.raises(ConfigError, match="tokens_per_batch"):
        next(encoder.batches([], 0))


def test_token_dropout_of_nt_v1_scales_by_what_it_was_in_training(folders, tmp_path):
    """No token is masked at inference: embeddings are 0.88 of the table's, as in ESM, and positions are added after that; padding
    changes nothing. Masked tokens are zero, and the others grow by the share that is left."""
    backbone = load_backbone(folders["nt-v1"])
    encoded = backbone.encoder.encode_all(["ACGTGA" * 5, "TTGACA"])
    batch = backbone.encoder.collate(encoded)
    tables = backbone.model.esm.embeddings
    words, places = tables.word_embeddings.weight, tables.position_embeddings.weight
    states = backbone.hidden_states(batch, [0])[0]
    for at, one in enumerate(encoded):
        ids = torch.from_numpy(one.ids)
        wanted = 0.88 * words[ids] + places[backbone.encoder.tokenizer.pad_id + 1 + torch.arange(len(ids))]
        assert states[at, : len(ids)] == pytest.approx(wanted.numpy(), abs=1e-6)
    batch.input_ids[0, 2:4] = backbone.encoder.tokenizer.mask_id
    scaled = 0.88 / (1 - 2 / 6) * words[batch.input_ids[0, 1]] + places[backbone.encoder.tokenizer.pad_id + 2]
    assert backbone.hidden_states(batch, [0])[0][0, 1] == pytest.approx(scaled.numpy(), abs=1e-6)


def test_layers_by_number(folders):
    backbone = load_backbone(folders["nt-v2"])
    assert backbone.layer_numbers([0, -1, 1]) == [0, 2, 1]
    for layers, message in (([3], "layer 3 is not there.*0 .embeddings. to 2"), ([-4], "layer -4"), ([2, -1], "twice"), ([], "no layer")):
        with pytest.raises(ConfigError, match=message):
            backbone.layer_numbers(layers)


def test_a_run_is_exported_on_the_way_and_the_context_is_kept(tmp_path, capsys):
    config = run_config({"kind": "nt_v1"}, {**NT_V1, **sizes(2, 24, 4, 40), "max_position_embeddings": 64})
    tokenizer = tokenizer_of("nt_v1")
    write_native(tmp_path / "native", config, tokenizer, random_native(config, tokenizer).items())
    backbone = open_backbone(tmp_path / "native")
    assert "exported" in capsys.readouterr().err and backbone.encoder.max_tokens == 64
    assert math.isfinite(backbone.logits(backbone.encoder.collate(backbone.encoder.encode("ACGTGA" * 63))).sum())
    with pytest.raises(ConfigError, match="max_tokens = 65 exceeds the model's 64 positions, which are learned"):
        open_backbone(tmp_path / "native", max_tokens=65)
    assert open_backbone(tmp_path / "native", max_tokens=5).encoder.max_tokens == 5
    with pytest.raises(ConfigError, match="dtype = half"):
        open_backbone(tmp_path / "native", dtype="half")
    with pytest.raises(ConfigError, match="is no model"):
        open_backbone(tmp_path)


def test_rotary_and_alibi_models_read_on_where_asked(folders):
    for name in ("dnabert2", "aido-dna"):
        context = load_backbone(folders[name]).encoder.max_tokens
        longer = load_backbone(folders[name], max_tokens=context + 200)
        [one] = longer.encoder.encode("ACGT" * (context // 4 + 40))
        assert torch.isfinite(longer.hidden_states(longer.encoder.collate([one]))[0]).all()


def test_random_weights_are_fresh_and_seeded(folders):
    batch = load_backbone(folders["nt-v2"]).encoder.collate(load_backbone(folders["nt-v2"]).encoder.encode(SEQUENCES[2]))
    states = [load_backbone(folders["nt-v2"], random_weights=seed).hidden_states(batch)[0] for seed in (None, 1, 1, 2)]
    assert torch.equal(states[1], states[2])
    assert not torch.allclose(states[0], states[1]) and not torch.allclose(states[1], states[3])
