"""The published recipes, small as tiny-*.yaml make them, on a piece of a genome: layouts, resume, masking, and the way out and back."""

from __future__ import annotations

import contextlib
import gzip
import io
from pathlib import Path

import numpy as np
import pytest
import torch
import training
import yaml
from convert.test_real_encoders import megatron_logits, train_randomised
from test_recipes import TINY, WEIGHTS

from dnapretrain.config import ParallelConfig
from dnapretrain.config_file import load_config, read_recipe
from dnapretrain.data.sampling.run_data import open_data

GENOME = Path(__file__).parents[2] / "examples" / "quickstart" / "data" / "NC_017625.1.fa.gz"
BASES = 300_000
STEPS, STOP = 3, 1
TINY_OF = {
    "generator": "tiny-generator",
    "nt-v1": "tiny-nt-v1",
    "nt-v2": "tiny-nt-v2",
    "dnabert2": "tiny-dnabert2",
    "aido": "tiny-aido-dna",
}
TP_PP_SP = {"tp": 2, "pp": 2, "sequence_parallel": True}
LAYOUTS = {"TP2": (2, {"tp": 2}), "PP2": (2, {"pp": 2}), "TP2xPP2+SP": (4, TP_PP_SP), "DP2 as published": (2, None)}
BOTH = ("TP2xPP2+SP", "DP2 as published")
TABLE = [*((name, layout) for name in (*TINY, "generator-v2-1.2b") for layout in BOTH), ("tiny-dnabert2", "TP2"), ("tiny-generator", "PP2")]
OTHERS = [name for name in WEIGHTS if not any(yaml.safe_load(read_recipe(tiny))["recipe"] == name for tiny in TINY)]


@pytest.fixture(scope="module")
def shrunk(tmp_path_factory):
    """Build a config tree: `shrunk("nt-v2-50m", run_dir)` is that recipe under the changes of its tiny one, with few and small steps."""
    from dnapretrain.data.shards.preprocess import preprocess
    from dnapretrain.data.tokens.bpe import train_bpe

    folder = tmp_path_factory.mktemp("tiny")
    with gzip.open(GENOME, "rt") as file:
        header, *lines = file.read(int(1.02 * BASES)).splitlines()
    (folder / "piece.fa").write_text("\n".join([header, "".join(lines)[:BASES], ""]))
    preprocess([folder / "piece.fa"], folder / "piece")
    train_bpe([folder / "piece"], folder / "bpe.json", vocab_size=512)
    overrides = [
        f"data.train={folder / 'piece'}",
        "data.valid={}",
        "data.split.valid_fraction=0.3",
        "optim.lr_warmup_steps=1",
        "train.micro_batch_size=1",
        "train.global_batch_size=4",
        "train.eval_samples=8",
    ]

    def build(name, run_dir, *more):
        if name not in TINY:
            tree = yaml.safe_load(read_recipe(next(tiny for start, tiny in TINY_OF.items() if name.startswith(start))))
            tree |= {"recipe": name, "parallel": ParallelConfig().model_dump()}
            name = folder / f"{name}.yaml"
            name.write_text(yaml.safe_dump(tree))
        config = load_config(name, [*overrides, f"train.run_dir={run_dir}", *more])
        bpe = [f"tokenizer.file={folder / 'bpe.json'}"] if config.tokenizer.kind == "bpe" else []
        return load_config(name, [*overrides, f"train.run_dir={run_dir}", *bpe, *more]).model_dump(mode="json")

    return build


def parallel_of(tree, name, layout):
    """(ranks, the tree under the layout); as published: what the recipe above says of optimizer and overlap."""
    ranks, parallel = LAYOUTS[layout]
    published = yaml.safe_load(read_recipe(name))["recipe"] if name in TINY else name
    return ranks, {**tree, "parallel": load_config(published).parallel.model_dump(mode="json") if parallel is None else parallel}


@pytest.fixture(scope="module")
def one_rank(ranks, shrunk, tmp_path_factory):
    """The reference without dropout, once per recipe."""
    known = {}

    def reference(name):
        if name not in known:
            tree = without_dropout(shrunk(name, tmp_path_factory.mktemp("alone")))
            known[name] = ranks.run(1, training.train, tree={**tree, "parallel": {}}, until=STEPS)[0]
        return known[name]

    return reference


def without_dropout(tree):
    """Ranks draw different numbers; token_dropout of NT-v1 is none, it only scales words."""
    return {**tree, "model": {**tree["model"], "hidden_dropout": 0.0, "attention_dropout": 0.0, "ffn_dropout": "output"}}


@pytest.mark.parametrize(("name", "layout"), TABLE)
def test_equals_one_rank(ranks, shrunk, one_rank, tmp_path, name, layout):
    expected = one_rank(name)
    world_size, tree = parallel_of(without_dropout(shrunk(name, tmp_path)), name, layout)
    for result in ranks.run(world_size, training.train, tree=tree, until=STEPS):
        assert len(result.losses) == STEPS
        assert max(abs(a - b) for a, b in zip(result.losses, expected.losses, strict=True)) <= 1e-5
        assert max(abs(a / b - 1) for a, b in zip(result.grad_norms, expected.grad_norms, strict=True)) <= 1e-4
        assert abs(result.valid.loss - expected.valid.loss) <= 1e-5


@pytest.mark.parametrize(("name", "layout"), [*((name, "DP2 as published") for name in TINY), ("tiny-dnabert2", "TP2")])
def test_resumes_bit_for_bit(ranks, shrunk, one_rank, tmp_path, name, layout):
    def run(run_dir, until):
        world_size, tree = parallel_of(shrunk(name, tmp_path / run_dir), name, layout)
        return ranks.run(world_size, training.train, tree=tree, until=until, save=True)[0]

    whole = run("whole", STEPS)
    run("parted", STOP)
    resumed = run("parted", STEPS)
    assert "resumed from" in resumed.log
    assert resumed.losses == whole.losses[STOP:]
    assert resumed.grad_norms == whole.grad_norms[STOP:]
    ours, theirs = training.stored_tensors(tmp_path / "whole"), training.stored_tensors(tmp_path / "parted")
    assert ours.keys() == theirs.keys()
    assert any("exp_avg_sq" in item for item in ours)
    assert not [item for item in ours if not torch.equal(ours[item], theirs[item])]
    drops = abs(whole.losses[0] - one_rank(name).losses[0]) > 1e-4
    assert drops == (name == "tiny-dnabert2"), "the recipe's own dropout is on, and only where it should be"


def errors_of_a_step(env, store, tree):
    """What a rank writes to stderr in a step."""
    trainer, _, _ = training.begin(env, store, tree)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        trainer.train_step(trainer.next_batches())
    return errors.getvalue()


def test_dropout_on_cpu_is_no_cause_to_warn(ranks, shrunk, tmp_path):
    assert ranks.run(1, errors_of_a_step, tree=shrunk("tiny-dnabert2", tmp_path)) == [""]


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_published_recipes_train(ranks, shrunk, tmp_path, name):
    result = ranks.run(1, training.train, tree=shrunk(name, tmp_path), until=1)[0]
    assert np.isfinite([*result.losses, *result.grad_norms, result.valid.loss]).all()
    assert min(result.grad_norms) > 0


@pytest.mark.parametrize(
    ("name", "random_share"),
    [("nt-v1-500m-1000g", 0.0), ("nt-v1-2.5b-1000g", 0.0), ("nt-v1-500m-human-ref", 0.1), ("nt-v1-2.5b-multi", 0.1)],
)
def test_what_masking_puts_in_place_of_tokens(shrunk, tmp_path, name, random_share):
    """A 1000 Genomes model reads <mask> or the token itself, never another one, which would look like a variant."""
    from dnapretrain.config_file import config_from_dict

    data = open_data(config_from_dict(shrunk(name, tmp_path)))
    batch = data.train.batch(np.arange(data.train.num_samples))
    chosen = batch.loss_mask > 0
    read, true = batch.tokens[chosen], batch.labels[chosen]
    mask_id = data.tokenizer.mask_id
    masked, kept = read == mask_id, read == true
    assert chosen.sum() > 4000
    assert masked.mean() == pytest.approx(0.8, abs=0.03)
    assert kept.mean() == pytest.approx(0.2 - random_share, abs=0.03)
    if random_share:
        assert (~masked & ~kept).mean() == pytest.approx(random_share, abs=0.03)
    else:
        assert not (~masked & ~kept).any()


def folder_logits(folder, tokens, real):
    """Logits of the model that plain transformers loads from a folder, every tensor of it used."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    loader = AutoModelForCausalLM if "generator" in str(folder) else AutoModelForMaskedLM
    model, info = loader.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    with torch.no_grad():
        return model.eval()(torch.from_numpy(tokens), attention_mask=torch.from_numpy(real).long()).logits.numpy()


@pytest.mark.parametrize("name", TINY)
def test_out_to_transformers_and_back(ranks, shrunk, tmp_path, name):
    from dnapretrain.config_file import config_from_dict
    from dnapretrain.convert.hf import from_hf, to_hf
    from dnapretrain.convert.native import find_checkpoint, open_weights

    tree = shrunk(name, tmp_path / "run")
    ranks.run(4, train_randomised, tree={**tree, "parallel": {"tp": 2, "pp": 2}})
    checkpoint = find_checkpoint(tmp_path / "run")
    folder = tmp_path / f"{name}-hf"
    to_hf(checkpoint, folder)

    data = open_data(config_from_dict(tree))
    tokens = data.held_out["valid"].batch(np.arange(3)).tokens
    real = tokens != data.tokenizer.pad_id
    theirs = folder_logits(folder, tokens, real)
    ours = ranks.run(1, megatron_logits, checkpoint=str(checkpoint), tokens=tokens)[0]
    assert ours.shape == theirs.shape
    assert np.abs(ours[real]).max() > 0.1
    assert np.abs(ours[real] - theirs[real]).max() <= 1e-5 * np.abs(ours[real]).max()

    from_hf(folder, tmp_path / "back")
    first, second = open_weights(checkpoint), open_weights(tmp_path / "back")
    assert second.names() == first.model_names()
    assert all(torch.equal(first.read(item), second.read(item)) for item in second.names())
    to_hf(tmp_path / "back", tmp_path / "again")
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "again" / "model.safetensors").read_bytes()
