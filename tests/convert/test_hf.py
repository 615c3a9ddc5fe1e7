import json

import pytest
import torch
from reference import reference_logits, small_config, write_random
from safetensors.torch import load_file, save_file

from dnapretrain.convert.hf import from_hf, to_hf
from dnapretrain.convert.native import open_weights, read_config, read_state, read_tokenizer
from dnapretrain.convert.native_writer import write_native
from dnapretrain.data.tokens.tokenizers import build_tokenizer
from dnapretrain.errors import CheckpointError, ConfigError

SHAPES = {
    "grouped": {},
    "one group": {"num_query_groups": 1, "rotary_base": 500_000},
    "no groups, tied": {"num_query_groups": None, "untie_embeddings_and_output_weights": False},
    "wide heads": {"kv_channels": 10, "norm_epsilon": 1e-3},
}
KMER = {"kind": "kmer", "k": 3, "base_order": "ATCG"}


def hf_logits(directory, tokens_S):
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(str(directory), output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        return model(tokens_S[None]).logits[0]


def tokens_for(config, length=50):
    vocab_size = build_tokenizer(config.tokenizer).vocab_size
    return torch.randint(0, vocab_size, (length,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("tokenizer", [None, KMER], ids=["nucleotide", "3-mer"])
@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_gives_the_logits_of_the_native_tensors(tmp_path, shape, tokenizer):
    config = small_config(tokenizer, **SHAPES[shape])
    tensors = write_random(tmp_path / "native", config)
    to_hf(tmp_path / "native", tmp_path / "hf")
    tokens = tokens_for(config)
    expected = reference_logits(config, tensors, tokens)
    found = hf_logits(tmp_path / "hf", tokens)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_every_native_tensor_reaches_the_logits(tmp_path):
    config = small_config()
    tensors = write_random(tmp_path / "native", config)
    to_hf(tmp_path / "native", tmp_path / "hf")
    tokens = tokens_for(config)
    before = hf_logits(tmp_path / "hf", tokens)
    for number, name in enumerate(tensors):
        changed = {**tensors, name: tensors[name] + 0.1 * torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(2))}
        native = tmp_path / f"native{number}"
        write_native(native, config, build_tokenizer(config.tokenizer), changed.items())
        to_hf(native, tmp_path / "hf")
        after = hf_logits(tmp_path / "hf", tokens)
        assert (after - before).abs().max() > 1e-3, name
        assert (after - reference_logits(config, changed, tokens)).abs().max() <= 1e-5 * after.abs().max(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("untie", [True, False])
def test_hf_native_hf_is_byte_identical(tmp_path, untie, dtype):
    config = small_config(KMER, untie_embeddings_and_output_weights=untie, max_position_embeddings=128)
    write_random(tmp_path / "native", config, dtype=dtype)
    to_hf(tmp_path / "native", tmp_path / "first")
    report = from_hf(tmp_path / "first", tmp_path / "imported")
    assert report["settings_to_override"][0] == "data.train"
    to_hf(tmp_path / "imported", tmp_path / "second")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert list(first) == list(second)
    for name in first:
        assert first[name].dtype == second[name].dtype == dtype
        assert torch.equal(first[name].view(torch.uint8), second[name].view(torch.uint8)), name
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert read_config(tmp_path / "imported").model == config.model
    assert read_tokenizer(tmp_path / "imported") == build_tokenizer(config.tokenizer)
    embedding = open_weights(tmp_path / "imported").read("embedding.word_embeddings.weight")
    rows = build_tokenizer(config.tokenizer).vocab_size
    assert embedding.shape[0] == 128
    assert not embedding[rows:].any()


def test_a_model_saved_by_transformers_comes_in(tmp_path):
    from transformers import AutoModelForCausalLM

    config = small_config(num_query_groups=None)
    write_random(tmp_path / "native", config)
    to_hf(tmp_path / "native", tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(str(tmp_path / "hf"))
    model.save_pretrained(str(tmp_path / "saved"), max_shard_size="8KB")
    (tmp_path / "saved" / "tokenizer.json").write_bytes((tmp_path / "hf" / "tokenizer.json").read_bytes())
    from_hf(tmp_path / "saved", tmp_path / "back")
    before, after = open_weights(tmp_path / "native"), open_weights(tmp_path / "back")
    assert before.names() == after.names()
    rows = build_tokenizer(config.tokenizer).vocab_size
    for name in before.names():
        real = slice(rows) if "embed" in name or "output" in name else slice(None)
        assert torch.equal(before.read(name)[real], after.read(name)[real])
    assert read_config(tmp_path / "back").model == config.model.model_copy(update={"max_position_embeddings": 64})


def test_fp32_main_weights_are_written_where_there_are_any(tmp_path, monkeypatch):
    """The optimizer's copies lie under keys of their own; here another tensor of the same shape plays one."""
    config = small_config()
    tensors = write_random(tmp_path / "native", config, dtype=torch.bfloat16)
    report = to_hf(tmp_path / "native", tmp_path / "hf")
    assert (report["from_main_weights"], report["from_model_weights"], report["dtype"]) == (0, len(tensors), "bfloat16")

    source, main = "decoder.layers.0.mlp.linear_fc2.weight", "decoder.layers.1.mlp.linear_fc2.weight"
    monkeypatch.setattr("dnapretrain.convert.native.main_weight_keys", lambda name: (main,) if name == source else (f"no.{name}",))
    report = to_hf(tmp_path / "native", tmp_path / "hf")
    assert (report["from_main_weights"], report["from_model_weights"]) == (1, len(tensors) - 1)
    assert torch.equal(load_file(tmp_path / "hf" / "model.safetensors")["model.layers.0.mlp.down_proj.weight"], tensors[main])


def test_shards_load_in_transformers(tmp_path):
    config = small_config()
    tensors = write_random(tmp_path / "native", config)
    report = to_hf(tmp_path / "native", tmp_path / "hf", max_shard_bytes=8000)
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 3
    tokens = tokens_for(config)
    expected = reference_logits(config, tensors, tokens)
    assert (hf_logits(tmp_path / "hf", tokens) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert report["hf_tensors"] == 2 * 9 + 3
    assert report["native_tensors"] == len(tensors)
    assert report["bytes"] == 4 * report["parameters"]


def test_the_folder_has_tokenizer_config_and_card(tmp_path):
    from transformers import AutoTokenizer, GenerationConfig

    config = small_config(KMER)
    write_random(tmp_path / "native", config, step=1234, consumed_samples=9872, data_digest="d1ge57")
    to_hf(tmp_path / "native", tmp_path / "hf")
    tokenizer = build_tokenizer(config.tokenizer)
    assert AutoTokenizer.from_pretrained(str(tmp_path / "hf"))("ACGTTT")["input_ids"] == [tokenizer.bos_id, *tokenizer.encode("ACGTTT")]
    assert GenerationConfig.from_pretrained(str(tmp_path / "hf")).bos_token_id == tokenizer.bos_id
    content = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (content["vocab_size"], content["torch_dtype"], content["max_position_embeddings"]) == (tokenizer.vocab_size, "float32", 64)
    card = (tmp_path / "hf" / "README.md").read_text()
    for fact in ("d1ge57", "1,234", "9,872", "`coli`", "64 tokens, 1 of them special, = 189 bases", "3-mers"):
        assert fact in card
    assert read_state(tmp_path / "native")["data_digest"] == "d1ge57"


def test_only_an_earlier_export_is_replaced(tmp_path):
    write_random(tmp_path / "native", small_config())
    to_hf(tmp_path / "native", tmp_path / "hf")
    to_hf(tmp_path / "native", tmp_path / "hf")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="not an earlier export"):
        to_hf(tmp_path / "native", tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter1.tex").exists()


def test_what_others_put_beside_an_export_stays(tmp_path):
    native, folder = tmp_path / "native", tmp_path / "hf"
    write_random(native, small_config())
    to_hf(native, folder)
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref")
    (folder / "LICENSE").write_text("mine")
    (folder / "model.safetensors").write_bytes(b"old")
    to_hf(native, folder)
    assert (folder / ".git" / "HEAD").read_text() == "ref" and (folder / "LICENSE").read_text() == "mine"
    assert (folder / "model.safetensors").stat().st_size > 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "native"]
    card = folder / "README.md"
    card.write_text(card.read_text() + "\nLicence: mine\n")
    with pytest.raises(ConfigError, match=r"README.md was changed after it was exported.* Move it away"):
        to_hf(native, folder)
    card.rename(folder / "CARD.md")
    (tmp_path / ".hf.replaced").mkdir()
    with pytest.raises(ConfigError, match="broken off"):
        to_hf(native, folder)
    (tmp_path / ".hf.replaced").rmdir()
    to_hf(native, folder)
    assert "Licence: mine" in (folder / "CARD.md").read_text() and card.is_file()


def test_a_damaged_checkpoint_leaves_the_earlier_export_alone(tmp_path):
    write_random(tmp_path / "native", small_config())
    to_hf(tmp_path / "native", tmp_path / "hf")
    path = max((tmp_path / "native" / "weights").glob("*.distcp"), key=lambda file: file.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        to_hf(tmp_path / "native", tmp_path / "hf")
    assert (tmp_path / "hf" / "model.safetensors").is_file()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["hf", "native"]


def test_a_checkpoint_of_another_depth_is_refused(tmp_path):
    write_random(tmp_path / "native", small_config())
    for layers, message in ((3, "6 missing"), (1, "6 unexpected")):
        text = (tmp_path / "native" / "run.yaml").read_text()
        (tmp_path / "native" / "run.yaml").write_text(
            "\n".join(f"  num_layers: {layers}" if "  num_layers:" in line else line for line in text.split("\n"))
        )
        with pytest.raises(CheckpointError, match=message):
            to_hf(tmp_path / "native", tmp_path / "hf")


def edit_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def exported(tmp_path):
    write_random(tmp_path / "native", small_config())
    to_hf(tmp_path / "native", tmp_path / "hf")
    return tmp_path / "hf"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "model_type = 'mamba'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"vocab_size": 11}, "vocab_size = 11"),
        ({"num_key_value_heads": 3}, "num_query_groups"),
    ],
)
def test_folders_that_cannot_be_imported_name_the_field(exported, tmp_path, change, message):
    edit_config(exported, **change)
    with pytest.raises(ConfigError, match=message):
        from_hf(exported, tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_hf_tensors_that_do_not_fit_are_named(exported, tmp_path, change):
    tensors = load_file(exported / "model.safetensors")
    name = "model.layers.1.self_attn.k_proj.weight"
    if change == "missing":
        del tensors[name]
    elif change == "extra":
        name = "model.layers.1.self_attn.k_proj.bias"
        tensors[name] = torch.zeros(12)
    else:
        tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, exported / "model.safetensors")
    with pytest.raises(CheckpointError, match=name):
        from_hf(exported, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_values_that_are_not_finite_are_told(tmp_path, capsys):
    config = small_config({"kind": "nucleotide"})
    write_random(tmp_path / "native", config)
    to_hf(tmp_path / "native", tmp_path / "hf")
    assert "not finite" not in capsys.readouterr().err
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    for name, value in zip(sorted(tensors)[1:3], (float("nan"), float("inf")), strict=True):
        tensors[name].view(-1)[3] = value
    save_file(tensors, tmp_path / "hf" / "model.safetensors", {"format": "pt"})
    from_hf(tmp_path / "hf", tmp_path / "back")
    assert "warning: 2 tensor(s) hold values that are not finite, the first " in capsys.readouterr().err
