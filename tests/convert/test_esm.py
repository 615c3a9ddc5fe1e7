"""Encoders as EsmForMaskedLM: logits, round trips, and what the class cannot express."""

import json

import pytest
import torch
from reference import encoder_logits, encoder_shapes, small_encoder, write_random
from safetensors.torch import load_file, save_file

from dnapretrain.convert.esm import ESM, entries
from dnapretrain.convert.hf import from_hf, to_hf
from dnapretrain.convert.native import open_weights, read_config
from dnapretrain.convert.native_writer import write_native
from dnapretrain.data.tokens.tokenizers import build_tokenizer
from dnapretrain.errors import CheckpointError, ConfigError

MODELS = {
    "rope": {},
    "rope, tied, embedding norm": {"untie_embeddings_and_output_weights": False, "embedding_norm": True},
    "rope, token dropout": {"token_dropout": 0.12, "norm_epsilon": 1e-12},
    "positions": {"position_embedding_type": "learned_absolute", "norm_epsilon": 1e-3},
    "positions, tied, token dropout, embedding norm": {
        "position_embedding_type": "learned_absolute",
        "untie_embeddings_and_output_weights": False,
        "token_dropout": 0.12,
        "embedding_norm": True,
    },
}
KMER = {"kind": "kmer", "k": 3, "base_order": "ATCG"}
LENGTHS = (50, 37, 64)


def load(directory):
    from transformers import AutoModelForMaskedLM

    model, info = AutoModelForMaskedLM.from_pretrained(str(directory), output_loading_info=True)
    assert type(model).__name__ == "EsmForMaskedLM"
    assert not any(info.values()), info
    return model.eval()


def samples(config):
    """Token ids of several lengths; every seventh is <mask>, in all but the second, which has none."""
    tokenizer, generator = build_tokenizer(config.tokenizer), torch.Generator().manual_seed(1)
    rows = [torch.randint(5, tokenizer.vocab_size, (length,), generator=generator) for length in LENGTHS]
    rows[0][3::7] = rows[2][5::7] = tokenizer.mask_id
    return rows


def hf_logits(directory, rows):
    """Logits of each row without its padding, all rows in one padded batch."""
    longest = max(map(len, rows))
    tokens_BS = torch.stack([torch.nn.functional.pad(row, (0, longest - len(row))) for row in rows])
    mask_BS = torch.stack([(torch.arange(longest) < len(row)).long() for row in rows])
    with torch.no_grad():
        logits = load(directory)(tokens_BS, attention_mask=mask_BS).logits
    return [logits[i, : len(row)] for i, row in enumerate(rows)]


def exact_logits(config, tensors, row):
    """The reference in fp64: the difference is what transformers rounds."""
    return encoder_logits(config, {name: tensor.double() for name, tensor in tensors.items()}, row)


def assert_logits_agree(directory, config, tensors):
    rows = samples(config)
    for row, found in zip(rows, hf_logits(directory, rows), strict=True):
        expected = exact_logits(config, tensors, row)
        assert found.shape == expected.shape
        assert expected.abs().max() > 0.5
        assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("tokenizer", [None, KMER], ids=["nucleotide", "3-mer"])
@pytest.mark.parametrize("model", MODELS)
def test_transformers_gives_the_logits_of_the_native_tensors(tmp_path, model, tokenizer):
    config = small_encoder(tokenizer, **MODELS[model])
    tensors = write_random(tmp_path / "native", config)
    report = to_hf(tmp_path / "native", tmp_path / "hf")
    assert_logits_agree(tmp_path / "hf", config, tensors)
    assert report["native_tensors"] == len(tensors)
    assert report["extra_tensors"] == (2 if "positions" in model else 2 + config.model.num_layers)


def test_every_native_tensor_reaches_the_logits(tmp_path):
    config = small_encoder(embedding_norm=True, token_dropout=0.12)
    tensors = write_random(tmp_path / "native", config)
    to_hf(tmp_path / "native", tmp_path / "hf")
    rows = samples(config)[:1]
    [before] = hf_logits(tmp_path / "hf", rows)
    for number, name in enumerate(tensors):
        changed = {**tensors, name: tensors[name] + 0.1 * torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(2))}
        native = tmp_path / f"native{number}"
        write_native(native, config, build_tokenizer(config.tokenizer), changed.items())
        to_hf(native, tmp_path / "hf")
        [after] = hf_logits(tmp_path / "hf", rows)
        assert (after - before).abs().max() > 1e-3, name
        assert (after - exact_logits(config, changed, rows[0])).abs().max() < 1e-5, name


@pytest.mark.parametrize("model", MODELS)
def test_each_tensor_is_named_once_and_all_of_the_class_are_there(model):
    from transformers import EsmConfig, EsmForMaskedLM

    config = small_encoder(**MODELS[model])
    tokenizer = build_tokenizer(config.tokenizer)
    table = entries(config.model, config.max_positions, tokenizer)
    assert {entry.native: entry.native_shape for entry in table} == encoder_shapes(config)
    assert len({entry.native for entry in table}) == len(table)
    stock = EsmForMaskedLM(EsmConfig(**ESM.hf_config(config.model, config.max_positions, tokenizer)))
    written = [item for entry in table for item in entry.hf]
    extra = ESM.extra(config.model, config.max_positions, tokenizer, torch.float32)
    contact_head = [(name, tuple(tensor.shape)) for name, tensor in extra if "inv_freq" not in name]
    assert dict(written + contact_head) == {name: tuple(value.shape) for name, value in stock.named_parameters()}
    assert len(dict(written)) == len(written)
    for name, tensor in extra:
        if "inv_freq" in name:
            assert torch.equal(tensor, stock.esm.rotary_embeddings.inv_freq)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model", MODELS)
def test_native_hf_native_hf_is_byte_identical(tmp_path, model, dtype):
    config = small_encoder(KMER, **{**MODELS[model], "max_position_embeddings": 128, "hidden_dropout": 0.1})
    tensors = write_random(tmp_path / "native", config, dtype=dtype)
    to_hf(tmp_path / "native", tmp_path / "first")
    report = from_hf(tmp_path / "first", tmp_path / "back")
    assert report["left_out_tensors"] == (2 if "positions" in model else 4)
    assert report["settings_to_override"][-1] == "data.masking"
    back, vocab_size = open_weights(tmp_path / "back"), build_tokenizer(config.tokenizer).vocab_size
    assert back.names() == sorted(tensors)
    for name in back.names():
        padding = slice(vocab_size, None) if name.startswith(("embedding.word", "output_layer")) else slice(0)
        expected = tensors[name].clone()
        expected[padding] = 0
        assert back.dtype(name) == dtype
        assert torch.equal(back.read(name).view(torch.uint8), expected.view(torch.uint8)), name
    imported = read_config(tmp_path / "back")
    assert imported.model == config.model
    assert imported.data.masking.mlm_probability == 0.15

    to_hf(tmp_path / "back", tmp_path / "second")
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model", MODELS)
def test_a_model_of_transformers_comes_in_and_goes_out_bit_for_bit(tmp_path, model, dtype):
    from transformers import EsmConfig, EsmForMaskedLM

    config = small_encoder(**MODELS[model])
    write_random(tmp_path / "native", config)
    to_hf(tmp_path / "native", tmp_path / "hf")
    theirs = EsmForMaskedLM(EsmConfig.from_pretrained(tmp_path / "hf")).to(dtype)
    theirs.save_pretrained(tmp_path / "saved", max_shard_size="8KB")
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1
    (tmp_path / "saved" / "tokenizer.json").write_bytes((tmp_path / "hf" / "tokenizer.json").read_bytes())
    from_hf(tmp_path / "saved", tmp_path / "back")
    assert read_config(tmp_path / "back").model == config.model.model_copy(update={"max_position_embeddings": 64})
    report = to_hf(tmp_path / "back", tmp_path / "again")
    assert report["dtype"] == str(dtype).removeprefix("torch.")
    ours = load_file(tmp_path / "again" / "model.safetensors")
    for name, tensor in theirs.state_dict().items():
        if name == "lm_head.decoder.weight" and not config.model.untie_embeddings_and_output_weights:
            assert name not in ours
        elif "inv_freq" not in name:
            assert torch.equal(ours[name].view(torch.uint8), tensor.view(torch.uint8)), name
    load(tmp_path / "again")


def test_a_bf16_folder_has_exact_rotary_frequencies(tmp_path):
    write_random(tmp_path / "native", small_encoder(), dtype=torch.bfloat16)
    to_hf(tmp_path / "native", tmp_path / "hf")
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    assert {tensor.dtype for name, tensor in weights.items() if "inv_freq" not in name} == {torch.bfloat16}
    exact = 10_000.0 ** (-torch.arange(0, 6, 2, dtype=torch.float64) / 6)
    assert (load(tmp_path / "hf").esm.rotary_embeddings.inv_freq.double() / exact - 1).abs().max() < 1e-6


@pytest.fixture
def exported(tmp_path):
    write_random(tmp_path / "native", small_encoder(token_dropout=0.12), step=1234, data_digest="d1ge57")
    to_hf(tmp_path / "native", tmp_path / "hf")
    return tmp_path / "hf"


def test_the_folder_fills_masks(exported):
    from transformers import AutoTokenizer, pipeline

    tokenizer = AutoTokenizer.from_pretrained(str(exported))
    ids = tokenizer("acgt<mask>N")["input_ids"]
    assert ids == [1, 5, 6, 7, 8, 4, 9]
    best = pipeline("fill-mask", model=str(exported), top_k=2)("ACGT<mask>N")
    logits = encoder_logits(small_encoder(token_dropout=0.12), dict(native_tensors(exported)), torch.tensor(ids))[5]
    assert [item["token"] for item in best] == logits.topk(2).indices.tolist()
    assert best[0]["score"] == pytest.approx(float(torch.softmax(logits, 0).max()), abs=1e-5)
    assert not (exported / "generation_config.json").exists()


def native_tensors(exported):
    reader = open_weights(exported.parent / "native")
    return [(name, reader.read(name)) for name in reader.names()]


def test_k_mers_around_a_mask_are_tokens_too(tmp_path):
    from transformers import pipeline

    write_random(tmp_path / "native", small_encoder(KMER))
    to_hf(tmp_path / "native", tmp_path / "hf")
    [best] = pipeline("fill-mask", model=str(tmp_path / "hf"), top_k=1)("ACGTTT<mask>GGA")
    assert len(best["sequence"].replace(" ", "")) >= 12


def test_the_card_is_that_of_an_encoder(exported):
    card = (exported / "README.md").read_text()
    for fact in ("pipeline_tag: fill-mask", "AutoModelForMaskedLM", "ESM-style encoder", "15 % of its tokens", "<mask>", "d1ge57", "1,234"):
        assert fact in card
    assert "Causal" not in card
    code = card.split("```python\n")[1].split("```")[0].replace('"."', repr(str(exported)))
    names: dict = {}
    exec(code, names)
    assert names["logits"].shape == (1, 13, 10)


def test_config_json_leaves_nothing_to_defaults(exported):
    content = json.loads((exported / "config.json").read_text())
    assert content == {
        "architectures": ["EsmForMaskedLM"],
        "model_type": "esm",
        "vocab_size": 10,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "layer_norm_eps": 1e-5,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": 65,
        "position_embedding_type": "rotary",
        "rope_theta": 10000.0,
        "emb_layer_norm_before": False,
        "token_dropout": True,
        "is_folding_model": False,
        "esmfold_config": None,
        "vocab_list": None,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "mask_token_id": 4,
        "use_cache": False,
        "torch_dtype": "float32",
    }


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("norm_position", "post"),
        ("normalization", "RMSNorm"),
        ("activation", "swiglu"),
        ("attention_bias", False),
        ("ffn_in_bias", False),
        ("ffn_out_bias", False),
        ("type_vocab_size", 2),
        ("position_embedding_type", "alibi"),
        ("position_embedding_type", "none"),
        ("rotary_base", 500_000),
        ("token_dropout", 0.15),
        ("num_query_groups", 2),
        ("kv_channels", 8),
    ],
)
def test_what_the_class_cannot_express_is_refused_by_name(setting, value):
    config = small_encoder(**{setting: value})
    with pytest.raises(ConfigError, match=rf"model\..*{setting} = .* EsmForMaskedLM, which has "):
        entries(config.model, 64, build_tokenizer(config.tokenizer))
    with pytest.raises(ConfigError, match=setting):
        ESM.hf_config(config.model, 64, build_tokenizer(config.tokenizer))


def test_dropout_inside_the_feed_forward_is_refused():
    config = small_encoder(hidden_dropout=0.1, ffn_dropout="inner")
    with pytest.raises(ConfigError, match=r"model\.ffn_dropout = inner"):
        entries(config.model, 64, build_tokenizer(config.tokenizer))


def edit_config(directory, **changes):
    path = directory / "config.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "left out"}))


@pytest.mark.parametrize(
    "change",
    [
        {"position_embedding_type": "relative_key"},
        {"rope_theta": 500_000.0},
        {"is_folding_model": True},
        {"is_decoder": True},
        {"auto_map": {"AutoModelForMaskedLM": "modeling.EsmForMaskedLM"}},
        {"pad_token_id": 1},
        {"pad_token_id": None},
        {"mask_token_id": 32},
        {"mask_token_id": "left out"},
        {"vocab_size": 11},
        {"hidden_size": "left out"},
        {"hidden_dropout_prob": 1.5},
    ],
    ids=str,
)
def test_fields_that_our_encoder_cannot_express_are_named(exported, tmp_path, change):
    edit_config(exported, **change)
    field = next(iter(change)).replace("hidden_dropout_prob", "hidden_dropout")
    with pytest.raises(ConfigError, match=field):
        from_hf(exported, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_what_a_config_leaves_out_has_the_defaults_of_transformers(exported, tmp_path):
    from transformers import EsmConfig

    for field in ("tie_word_embeddings", "hidden_dropout_prob", "attention_probs_dropout_prob", "layer_norm_eps", "initializer_range"):
        edit_config(exported, **{field: "left out"})
    edit_config(exported, **{field: "left out" for field in ("token_dropout", "emb_layer_norm_before", "position_embedding_type")})
    edit_config(exported, **{field: "left out" for field in ("max_position_embeddings", "rope_theta", "is_folding_model")})
    ours = ESM.model_config(json.loads((exported / "config.json").read_text()))
    theirs = EsmConfig.from_pretrained(exported)
    assert (ours.untie_embeddings_and_output_weights, ours.token_dropout, ours.embedding_norm) == (False, 0.0, False)
    assert (theirs.tie_word_embeddings, theirs.token_dropout, bool(theirs.emb_layer_norm_before)) == (True, False, False)
    assert (theirs.position_embedding_type, ours.position_embedding_type) == ("absolute", "learned_absolute")
    assert ours.max_position_embeddings == theirs.max_position_embeddings - 1
    assert ours.hidden_dropout == theirs.hidden_dropout_prob
    assert ours.attention_dropout == theirs.attention_probs_dropout_prob
    assert ours.norm_epsilon == theirs.layer_norm_eps
    assert ours.init_method_std == theirs.initializer_range


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "twice"])
def test_hf_tensors_that_do_not_fit_are_named(exported, tmp_path, change):
    tensors = load_file(exported / "model.safetensors")
    name = "esm.encoder.layer.1.attention.self.key.bias"
    if change == "missing":
        del tensors[name]
    elif change == "extra":
        name = "esm.pooler.dense.weight"
        tensors[name] = torch.zeros(24, 24)
    elif change == "twice":
        name = "esm.encoder.layer.0.attention.LayerNorm.bias"
        tensors["esm.encoder.layer.0.attention.LayerNorm.beta"] = torch.zeros(24)
    else:
        tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, exported / "model.safetensors")
    with pytest.raises(CheckpointError, match=name):
        from_hf(exported, tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("kept", [False, True], ids=["nothing of it", "more of it"])
def test_what_the_network_never_reads_may_be_missing_or_there(exported, tmp_path, kept):
    tensors = {name: tensor for name, tensor in load_file(exported / "model.safetensors").items() if "contact" not in name}
    tensors = {name: tensor for name, tensor in tensors.items() if "inv_freq" not in name}
    if kept:
        tensors["esm.contact_head.regression.weight"] = torch.ones(1, 8)
        tensors["esm.rotary_embeddings.inv_freq"] = torch.ones(3)
        tensors["esm.embeddings.position_embeddings.weight"] = torch.ones(65, 24)
    save_file(tensors, exported / "model.safetensors")
    assert from_hf(exported, tmp_path / "back")["left_out_tensors"] == (3 if kept else 0)
    back = open_weights(tmp_path / "back")
    assert "embedding.position_embeddings.weight" not in back.names()
    assert torch.equal(back.read("encoder.layers.1.mlp.linear_fc2.bias"), tensors["esm.encoder.layer.1.output.dense.bias"])


def test_a_position_table_is_read_where_the_model_has_one(tmp_path):
    config = small_encoder(position_embedding_type="learned_absolute")
    tensors = write_random(tmp_path / "native", config)
    to_hf(tmp_path / "native", tmp_path / "hf")
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    name = "esm.embeddings.position_embeddings.weight"
    assert torch.equal(weights.pop(name), tensors["embedding.position_embeddings.weight"])
    save_file(weights, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"1 missing: {name}"):
        from_hf(tmp_path / "hf", tmp_path / "back")


def test_an_encoder_continues_no_sequence(exported):
    from dnapretrain.adapt.generation.generate import generate

    with pytest.raises(ConfigError, match=r"holds an encoder, which reads both sides and continues nothing"):
        generate(exported, ["ACGT"], num_bases=4)
