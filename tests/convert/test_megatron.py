"""Checkpoints that stock Megatron-core wrote come in with its logits."""

from __future__ import annotations

import argparse
import json
import pickle
import shutil

import numpy as np
import pytest
import stock_megatron
import torch
import yaml
from stock_megatron import ARGS, LENGTH

from dnapretrain.cli import main
from dnapretrain.convert.megatron import from_megatron
from dnapretrain.convert.native import open_weights, read_config, read_tokenizer
from dnapretrain.errors import CheckpointError, ConfigError

TOKENIZER = {"gpt": ["tokenizer.kind=kmer", "tokenizer.k=3"], "bert": ["tokenizer.kind=aido_dna"]}
TOKENS = {"gpt": 69, "bert": 16}


@pytest.fixture(scope="module")
def stored(ranks, tmp_path_factory):
    """Checkpoints of TP2 x PP2, written once each: folder above, as Megatron-LM lays it out."""
    known = {}

    def checkpoint(kind):
        if kind not in known:
            folder = tmp_path_factory.mktemp(kind)
            path = folder / "iter_0000007"
            arguments = {"kind": kind, "path": str(path), "tp": 2, "pp": 2, "args": ARGS[kind]}
            ranks.run(4, stock_megatron.save, **arguments)
            (folder / "latest_checkpointed_iteration.txt").write_text("7")
            known[kind] = folder
        return known[kind]

    return checkpoint


def tokens_of(kind):
    return np.random.default_rng(1).integers(5, TOKENS[kind], (2, LENGTH))


@pytest.mark.parametrize("kind", ARGS)
def test_logits_are_those_of_the_stock_model(ranks, stored, tmp_path, kind):
    report = from_megatron(stored(kind), tmp_path / "native", overrides=TOKENIZER[kind])
    assert report["model_from"] == ["the checkpoint"] and report["left_out_tensors"] == [] and report["vocabulary_rows_stored"] == 256
    tokens = tokens_of(kind)
    path = str(stored(kind) / "iter_0000007")
    [theirs] = ranks.run(1, stock_megatron.logits, kind=kind, path=path, tokens=tokens)
    [ours] = ranks.run(1, stock_megatron.native_logits, path=str(tmp_path / "native"), tokens=tokens)
    assert np.abs(ours).max() > 1
    assert np.abs(ours - theirs[..., : TOKENS[kind]]).max() <= 1e-5 * np.abs(theirs).max()
    assert report["settings_left_out"] == ({"attention_dropout": 0.1} if kind == "gpt" else {})
    assert read_tokenizer(tmp_path / "native").vocab_size == TOKENS[kind]
    assert not open_weights(tmp_path / "native").read("embedding.word_embeddings.weight")[TOKENS[kind] :].any()


class Danger:
    """What a pickle can do when it is loaded as it stands."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_nothing_of_theirs_is_run(stored, tmp_path):
    source, harm = tmp_path / "source", tmp_path / "harm"
    shutil.copytree(stored("gpt") / "iter_0000007", source)
    args = argparse.Namespace(**ARGS["gpt"], danger=Danger(str(harm)), dtype=torch.bfloat16)
    torch.save({"args": args, "iteration": 7}, source / "common.pt")
    from_megatron(source, tmp_path / "native", overrides=TOKENIZER["gpt"])
    assert not harm.exists()
    torch.load(source / "common.pt", weights_only=False)  # what loading it as it stands does
    assert harm.exists()
    index = pickle.loads((source / ".metadata").read_bytes())
    index.planner_data = Danger(str(tmp_path / "more"))
    (source / ".metadata").write_bytes(pickle.dumps(index))
    from_megatron(source, tmp_path / "again", overrides=TOKENIZER["gpt"])
    assert not (tmp_path / "more").exists()


RECIPE = {
    "model": {**stock_megatron.SIZES, "num_query_groups": 2, "rotary_base": 500, "max_position_embeddings": LENGTH},
    "tokenizer": {"kind": "kmer", "k": 3},
    "data": {"train": "x", "sequence_length": 32},
}


def test_a_recipe_says_what_the_checkpoint_does_not(stored, tmp_path, capsys):
    source = tmp_path / "source"
    shutil.copytree(stored("gpt") / "iter_0000007", source)
    torch.save({"iteration": 7}, source / "common.pt")
    with pytest.raises(ConfigError, match="does not say its num_layers"):
        from_megatron(source, tmp_path / "no", overrides=TOKENIZER["gpt"])
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    assert main(["convert", "from-megatron", str(source), str(tmp_path / "native"), "--recipe", str(tmp_path / "recipe.yaml")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["model_from"] == [f"recipe {tmp_path / 'recipe.yaml'}"]
    from_megatron(stored("gpt"), tmp_path / "same", recipe=str(tmp_path / "recipe.yaml"))
    one, two = open_weights(tmp_path / "native"), open_weights(tmp_path / "same")
    assert all(torch.equal(one.read(name), two.read(name)) for name in two.names())
    (source / "run_config.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {
                    "_target_": "some.where.LlamaModelProvider",
                    **stock_megatron.SIZES,
                    "num_query_groups": 2,
                    "rotary_base": 500,
                    "layernorm_epsilon": 1e-5,
                    "normalization": "RMSNorm",
                    "gated_linear_unit": True,
                    "add_bias_linear": False,
                    "share_embeddings_and_output_weights": False,
                    "seq_length": LENGTH,
                    "init_method": {"_target_": "torch.nn.init.normal_"},
                }
            }
        )
    )
    from_megatron(source, tmp_path / "bridge", overrides=TOKENIZER["gpt"])
    bridge = read_config(tmp_path / "bridge").model
    assert bridge == read_config(tmp_path / "same").model


@pytest.mark.parametrize("change", ["unstacked", "local names", "prefix", "fork"])
def test_other_ways_to_name_the_same(stored, tmp_path, change, monkeypatch):
    """The reader is shown other names for the stored tensors; what comes in is the same."""
    from dnapretrain.convert import megatron

    kind = "bert" if change == "fork" else "gpt"
    from_megatron(stored(kind), tmp_path / "plain", overrides=TOKENIZER[kind])

    class Renaming(megatron.WeightsReader):
        def __init__(self, folder):
            super().__init__(folder)
            if change == "unstacked":
                stacks = [name for name in self._tensors if name.startswith("decoder.layers.")]
                self._of = {n.replace("layers.", f"layers.{i}."): (n, i) for n in stacks for i in range(4)}
                self._of |= {name: (name, None) for name in self._tensors if name not in stacks}
            else:
                self._of = {self._other(name): (name, None) for name in self._tensors}

        def _other(self, name):
            if change == "local names":
                name = name.replace("self_attention.linear_qkv.layer_norm_", "input_layernorm.")
                return name.replace("mlp.linear_fc1.layer_norm_", "pre_mlp_layernorm.")
            if change == "fork":
                return name.replace("lm_head.layer_norm.", "lm_head.layernorm.").replace("output_layer.bias", "lm_head.output_layer.bias")
            return f"module.{name}"

        def names(self):
            return sorted(self._of)

        def best_key(self, name):
            return name

        def dtype(self, name):
            return super().dtype(self._of[name][0])

        def shape(self, name):
            stored_name, layer = self._of[name]
            return super().shape(stored_name)[0 if layer is None else 1 :]

        def read(self, name):
            stored_name, layer = self._of[name]
            return super().read(stored_name) if layer is None else super().read(stored_name)[layer]

        def read_layer(self, name, index):
            return super().read_layer(self._of[name][0], index)

    monkeypatch.setattr(megatron, "WeightsReader", Renaming)
    from_megatron(stored(kind), tmp_path / "other", overrides=TOKENIZER[kind])
    one, two = open_weights(tmp_path / "plain"), open_weights(tmp_path / "other")
    assert one.names() == two.names()
    assert all(torch.equal(one.read(name), two.read(name)) for name in one.names())


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ([], ConfigError, "do not know their vocabulary"),
        (["tokenizer.kind=generator"], CheckpointError, "has 256 rows, the tokenizer 4128 tokens"),
        ([*TOKENIZER["gpt"], "model.num_layers=3"], ConfigError, "num_layers = 4, the recipe model.num_layers = 3"),
    ],
)
def test_what_does_not_fit_is_named(stored, tmp_path, overrides, error, message):
    with pytest.raises(error, match=message):
        from_megatron(stored("gpt"), tmp_path / "native", overrides=overrides)
    assert not (tmp_path / "native").exists()


def test_settings_that_our_models_have_not_are_named(stored, tmp_path):
    from dnapretrain.convert.megatron_settings import model_settings

    with pytest.raises(ConfigError, match="num_experts = 8"):
        model_settings({**ARGS["gpt"], "num_experts": 8}, "decoder")
    scaled = model_settings({**ARGS["gpt"], "use_rope_scaling": True, "rope_scaling_factor": 4.0}, "decoder")["rope_scaling"]
    assert scaled == {"rope_type": "llama3", "factor": 4.0, "original_max_position_embeddings": 8192}
    with pytest.raises(CheckpointError, match="Give the folder of an iteration"):
        from_megatron(tmp_path, tmp_path / "native")
