"""A new run from old weights: nothing rounded twice, longer contexts, larger vocabularies, and what is refused."""

from __future__ import annotations

import contextlib
import io
import json

import pytest
import torch
import training

from dnapretrain.data.tokens.bpe import vocabulary_of_merges
from dnapretrain.errors import CheckpointError

LAYOUTS = {
    "one rank": (1, {}),
    "TP2": (2, {"tp": 2}),
    "PP2": (2, {"pp": 2}),
    "DP2+distributed optimizer": (2, {"use_distributed_optimizer": True}),
    "TP2xDP2+distributed optimizer": (4, {"tp": 2, "use_distributed_optimizer": True}),
}


def one_step(env, store, tree):
    """What is logged of a run that is saved after its first step, and the learning rate of that step."""
    trainer, _, log = training.begin(env, store, tree)
    with contextlib.redirect_stdout(io.StringIO()):
        report = trainer.train_step(trainer.next_batches())
        trainer.save(trainer.position)
        trainer.log.close()
    return log, report.lr


def begun(ranks, tree, world_size=1):
    """What is logged of a run that is saved after its first step, which has a learning rate of 0: weights are as they were."""
    log, lr = ranks.run(world_size, one_step, tree=tree)[0]
    assert lr == 0.0
    return log


def continued(tree, source, layout, **changes):
    tree = {**tree, "checkpoint": {"load": str(source)}, "parallel": layout}
    return {**tree, **{section: {**tree[section], **values} for section, values in changes.items()}}


@pytest.fixture(scope="module")
def sources(ranks, small_shard, tmp_path_factory):
    """Runs of two steps, trained once per precision."""
    known = {}

    def source(tree, precision):
        if precision not in known:
            run = tmp_path_factory.mktemp(precision) / "run"
            tree = {**tree, "train": {**tree["train"], "run_dir": str(run), "precision": precision}, "parallel": {"tp": 2}}
            ranks.run(2, training.train, tree=tree, until=2, save=True)
            known[precision] = (run, training.stored_tensors(run))
        return known[precision]

    return source


def main_weights(tensors):
    prefix = "optimizer.state."
    return {
        name.removeprefix(prefix).partition(".")[2]: value
        for name, value in tensors.items()
        if name.startswith((f"{prefix}fp32_param.", f"{prefix}param."))
    }


@pytest.mark.parametrize(("layout", "precision"), [*((layout, "fp32") for layout in LAYOUTS), ("one rank", "bf16")])
def test_main_weights_begin_as_the_checkpoint_has_them_bit_for_bit(ranks, tiny_config, tmp_path, sources, layout, precision):
    source, tensors = sources(tiny_config(), precision)
    expected = main_weights(tensors) or {name: value for name, value in tensors.items() if not name.startswith("optimizer.")}
    assert any(not torch.equal(value, value.bfloat16().float()) for value in expected.values())  # rounding would be seen
    world_size, parallel = LAYOUTS[layout]
    tree = continued(tiny_config("new", **{"train.precision": "bf16"}), source, parallel)
    begun(ranks, tree, world_size)
    found = training.stored_tensors(tmp_path / "new")
    main = main_weights(found)
    assert main.keys() == expected.keys()
    for name, value in expected.items():
        assert main[name].dtype == torch.float32 and torch.equal(main[name], value), name
        assert torch.equal(found[name], value.bfloat16()), name


def test_weights_of_a_bf16_run_are_evaluated_and_continued_in_full_in_fp32(ranks, tiny_config, tmp_path, sources):
    source, tensors = sources(tiny_config(), "bf16")
    begun(ranks, continued(tiny_config("new"), source, {}))
    found = training.stored_tensors(tmp_path / "new")
    for name, value in main_weights(tensors).items():
        assert torch.equal(found[name], value), name


YARN = {"rope_type": "yarn", "factor": 2.0}
LINEAR = {"rope_type": "linear", "factor": 2.0}


def test_a_longer_context_is_said(ranks, tiny_config, tmp_path, sources):
    source, tensors = sources(tiny_config(), "fp32")
    longer = {"data": {"sequence_length": 64}}
    plain = begun(ranks, continued(tiny_config("plain"), source, {}, **longer))
    assert "context 32 tokens -> 64 tokens, rotary embedding as it was (model.rope_scaling, model.rotary_base)" in plain
    stretch = {**longer, "model": {"rope_scaling": LINEAR, "rotary_base": 20_000}}
    said = begun(ranks, continued(tiny_config("new"), source, {}, **stretch))
    assert f"new run, weights from {source}/checkpoints/step_00000002; context 32 tokens -> 64 tokens; rotary_base 10000 -> 20000; " in said
    assert "rope_scaling none -> linear x 2" in said
    found = training.stored_tensors(tmp_path / "new")
    assert all(torch.equal(found[name], value) for name, value in tensors.items() if not name.startswith("optimizer."))
    start = json.loads((tmp_path / "new" / "log.jsonl").read_text().splitlines()[0])
    assert start["started_from"][1] == "context 32 tokens -> 64 tokens"


def test_every_layout_stretches_alike(ranks, tiny_config, sources):
    source, _ = sources(tiny_config(), "fp32")
    before = ranks.run(1, training.train, tree=continued(tiny_config("a"), source, {}), until=0)[0].valid.loss
    tree = continued(tiny_config("b"), source, {}, model={"rope_scaling": {**YARN, "original_max_position_embeddings": 16}})
    one = ranks.run(1, training.train, tree=tree, until=0)[0].valid.loss
    both = ranks.run(4, training.train, tree={**tree, "parallel": {"tp": 2, "pp": 2}}, until=0)[0].valid.loss
    assert abs(one - before) > 1e-4
    assert abs(one - both) <= 1e-5


def test_a_resumed_run_keeps_its_rotary_embedding(ranks, tiny_config, tmp_path, sources):
    source, _ = sources(tiny_config(), "fp32")
    tree = continued(tiny_config("new"), source, {}, model={"rope_scaling": LINEAR})
    begun(ranks, tree)
    assert f"resumed from {tmp_path}/new/checkpoints/step_00000001" in ranks.run(1, one_step, tree=tree)[0][0]
    with pytest.raises(CheckpointError, match=r"model\.rope_scaling"):
        ranks.run(1, one_step, tree=tiny_config("new"))


ENCODER = {
    "model.kind": "encoder",
    "data.masking": {"mlm_probability": 0.15},
    "data.min_length": 8,
    "model.position_embedding_type": "learned_absolute",
}


def test_learned_positions_are_not_stretched(ranks, tiny_config, tmp_path):
    begun(ranks, tiny_config("short", **ENCODER))
    tree = continued(tiny_config("long", **{**ENCODER, "data.sequence_length": 64}), tmp_path / "short", {})
    with pytest.raises(CheckpointError, match=r"learned positions for 32 tokens, the run asks for 64.*position_embedding_type=rope"):
        begun(ranks, tree)
    assert not (tmp_path / "long").exists()


PAIRS = [(left, right) for left in "ACGT" for right in "ACGT"]
MERGES = [
    *PAIRS,
    *((left + right, base) for left, right in PAIRS for base in "ACGT"),
    *((a + b, c + d) for a, b in PAIRS for c, d in PAIRS),
]
"""All words of two, three and four bases: 16 + 64 + 256."""


def bpe_file(path, num_merges, extra=()):
    """A tokenizer.json with the first so many merges; tokens that no merge makes behind them."""
    vocabulary = vocabulary_of_merges(MERGES[:num_merges])
    content = vocabulary.to_json()
    for token in extra:
        content["model"]["vocab"][token] = len(content["model"]["vocab"])
    path.write_text(json.dumps(content))
    return {"kind": "bpe", "k": 2, "file": str(path)}


VOCABULARIES = {
    "decoder": (1, {}, {}),
    "decoder, TP2": (2, {"tp": 2}, {}),
    "tied decoder, PP2": (2, {"pp": 2}, {"model.untie_embeddings_and_output_weights": False}),
    "encoder, TP2xPP2": (4, {"tp": 2, "pp": 2}, {**ENCODER, "model.position_embedding_type": "rope", "model.normalization": "LayerNorm"}),
}


@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_larger_vocabulary_keeps_the_old_rows(ranks, tiny_config, tmp_path, name):
    world_size, parallel, model = VOCABULARIES[name]
    small = tiny_config("small", **{**model, "tokenizer": {}})
    small["tokenizer"] = bpe_file(tmp_path / "small.json", 100)  # 109 tokens, 128 rows
    ranks.run(1, one_step, tree=small)
    grown = {**tiny_config("grown", **model), "tokenizer": bpe_file(tmp_path / "grown.json", 140, extra=("[HUMAN]", "[MOUSE]"))}
    log = begun(ranks, continued(grown, tmp_path / "small", parallel), world_size)
    assert "vocabulary 109 tokens -> 151: 42 new rows begin as the mean of the old ones" in log
    before, after = training.stored_tensors(tmp_path / "small"), training.stored_tensors(tmp_path / "grown")
    changed = {key for key in before if not key.startswith("optimizer.") and before[key].shape != after[key].shape}
    tied, is_encoder = "tied" in name, "encoder" in name
    assert changed == {
        "embedding.word_embeddings.weight",
        *([] if tied else ["output_layer.weight"]),
        *(["output_layer.bias"] * is_encoder),
    }
    for key in changed:
        old, new = before[key][:109], after[key]
        assert len(new) == 256 and torch.equal(new[:109], old)
        assert torch.equal(new[109:151], old.double().mean(dim=0).float().expand_as(new[109:151]))
        assert not new[151:].any()
    for key in before:
        assert key in changed or key.startswith("optimizer.") or torch.equal(before[key], after[key]), key
    trained = ranks.run(world_size, training.train, tree={**grown, "parallel": parallel}, until=2)[0]
    assert trained.losses[-1] < 12


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        (lambda: MERGES[:4], r"the token 'CA' at 13 \(from 0\), the run has only 13 tokens"),
        (lambda: [*MERGES[:3], ("C", "A"), ("A", "T"), *MERGES[5:12]], r"the token 'AT' at 12 \(from 0\), the run has 'CA'"),
    ],
)
def test_a_vocabulary_that_is_not_an_extension_is_refused(ranks, tiny_config, tmp_path, merges, message):
    small = tiny_config("small")
    small["tokenizer"] = bpe_file(tmp_path / "small.json", 8)
    begun(ranks, small)
    other = tiny_config("other")
    vocabulary_of_merges(merges()).save(tmp_path / "other.json")
    other["tokenizer"] = {"kind": "bpe", "k": 2, "file": str(tmp_path / "other.json")}
    with pytest.raises(CheckpointError, match=message):
        begun(ranks, continued(other, tmp_path / "small", {}))


def test_another_model_is_refused(ranks, tiny_config, sources):
    source, _ = sources(tiny_config(), "fp32")
    with pytest.raises(CheckpointError, match=r"model\.ffn_hidden_size=96, the run has 128"):
        begun(ranks, continued(tiny_config("other", **{"model.ffn_hidden_size": 128}), source, {}))
