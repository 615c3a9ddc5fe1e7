"""Document attention: documents of a packed sample do not see each other, under any attention and layout."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import training
from train.test_layouts import LAYOUTS, MODELS

from dnapretrain.config_file import config_from_dict
from dnapretrain.errors import ConfigError

STEPS = 6
PACKED = {"data.sampling": "packed", "data.document_attention": True, "data.min_length": 1}
VARIANTS = {
    "decoder": {"model.num_query_groups": 4},
    "decoder, grouped queries": {"model.num_query_groups": 2},
    "ALiBi encoder": MODELS["post-norm ALiBi encoder"],
    "rotary encoder": MODELS["rotary encoder"],
    "rotary encoder, grouped queries": {**MODELS["rotary encoder"], "model.num_query_groups": 2},
    "learned-position encoder": {**MODELS["learned-position encoder"], "model.token_dropout": 0.0},
}


@pytest.fixture(scope="module")
def short_documents(tmp_path_factory):
    """Prefix of a shard of 400 records of 3 to 40 bases: two to five documents in most samples of 32 tokens."""
    from dnapretrain.data.shards.preprocess import preprocess

    folder = tmp_path_factory.mktemp("short")
    rng = np.random.default_rng(3)
    unit = "".join(rng.choice(list("ACGT"), 11))
    records = []
    for number in range(400):
        length, at = rng.integers(3, 41), rng.integers(0, 11)
        bases = np.where(rng.random(length) < 0.8, list((unit * 6)[at : at + length]), rng.choice(list("ACGT"), length))
        records.append(f">r{number}\n{''.join(bases)}\n")
    (folder / "short.fa").write_text("".join(records))
    preprocess([folder / "short.fa"], folder / "short")
    return folder / "short"


@pytest.fixture
def packed_config(tiny_config, short_documents):
    def build(name="run", **overrides):
        tree = tiny_config(name, **{**overrides, **PACKED, "data.train": [{"prefix": str(short_documents)}]})
        tree["data"]["split"] = {"by": "contig", "valid_contigs": [f"r{number}" for number in range(40)]}
        return tree

    return build


def _outputs(chunk, batch):
    """(logits [B, S, V], losses [B, S], what the chunk was given of a mask) of one micro-batch."""
    with torch.no_grad():
        logits = chunk(batch.tokens_BS, batch.positions_BS, batch.attention_mask)
        losses = chunk(batch.tokens_BS, batch.positions_BS, batch.attention_mask, labels=batch.labels_BS)
    return logits, (losses[0] if isinstance(losses, tuple) else losses)


def _randomised(chunk, std=0.2):
    from dnapretrain.model.build import named_weights

    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, weight in named_weights([chunk]):
            weight.add_(torch.empty_like(weight).normal_(0, std, generator=generator))
    return chunk.eval()


def changed_places(env, store, tree):
    """For each document of some samples: whether others change when its tokens do, with and without their being told apart. Of the
    tokens that are this rank's."""
    from dataclasses import replace

    trainer, data, _ = training.begin(env, store, tree)
    chunk, place = _randomised(trainer.chunks[0].module), trainer.place
    chunk = chunk.module if hasattr(chunk, "module") else chunk
    epoch = np.arange(data.train.num_samples)
    padded = epoch[(data.train.batch(epoch).documents == -1).any(axis=1)]
    batch = data.train.batch(np.array([*epoch[: 6 if tree["data"]["sequence_length"] < 99 else 2], *padded]))

    def outputs(batch):
        return _outputs(chunk, place.take(batch))

    found = []
    for told_apart in (True, False):
        given = batch if told_apart else replace(batch, documents=None)
        logits, losses = outputs(given)
        most = int(batch.documents.max())
        for number in sorted({0, 1, most // 2, most}):
            here = batch.documents == number
            tokens = np.where(here, 5 + (batch.tokens + 2) % 4, batch.tokens)
            new_logits, new_losses = outputs(replace(given, tokens=tokens))
            others = torch.from_numpy(~here & here.any(axis=1)[:, None])
            here, others = place.own_part(torch.from_numpy(here)), place.own_part(others)
            same = torch.equal(new_logits[others], logits[others]) and torch.equal(new_losses[others], losses[others])
            itself = not here.any() or not torch.equal(new_logits[here], logits[here])
            found.append((told_apart, int(others.sum()) > 0, same, itself))
    return found


KERNEL_BLOCKS = [("decoder", 1100), ("ALiBi encoder", 1100)]  # blocks of 512 keys: some hold none that a query sees


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("variant", "length"), [*((variant, 32) for variant in VARIANTS), *KERNEL_BLOCKS])
def test_a_document_changes_no_other_at_all(ranks, packed_config, variant, length, precision):
    tree = packed_config(**VARIANTS[variant], **{"data.sequence_length": length, "train.precision": precision})
    if length > 32:
        tree["model"].update(num_layers=1)
    found = ranks.run(1, changed_places, tree=tree)[0]
    told_apart = [entry for entry in found if entry[0] and entry[1]]
    assert len(told_apart) >= 2
    assert all(same and itself for _, _, same, itself in told_apart)
    without = [same for apart, others, same, _ in found if not apart and others]
    assert not without[0] and (variant.startswith("decoder") or not any(without))  # nothing follows the last of a causal sample


@pytest.mark.parametrize(("variant", "length"), [*((variant, 32) for variant in VARIANTS), *KERNEL_BLOCKS])
def test_nor_does_it_on_another_rank(ranks, packed_config, variant, length):
    tree = packed_config(**VARIANTS[variant], **{"data.sequence_length": length, "parallel.cp": 2})
    if length > 32:
        tree["model"].update(num_layers=1)
    of_ranks = ranks.run(2, changed_places, tree=tree)
    assert all(same and itself for found in of_ranks for told_apart, _, same, itself in found if told_apart)
    assert sum(others for found in of_ranks for told_apart, others, _, _ in found if told_apart) >= 4
    assert not all(same for found in of_ranks for told_apart, others, same, _ in found if others and not told_apart)


def losses_alone(env, store, tree):
    """Losses [document][token] of packed samples, and of each of their documents by itself."""
    trainer, data, _ = training.begin(env, store, tree)
    chunk, place = _randomised(trainer.chunks[0].module, 0.05), trainer.place  # losses near 2: 1e-5 is some 40 roundings of fp32
    epoch = np.arange(data.train.num_samples)
    padded = epoch[(data.train.batch(epoch).documents == -1).any(axis=1)]
    batch = data.train.batch(np.array([*epoch[:8], *padded]))
    losses = _outputs(chunk, place.take(batch))[1]
    packed, alone = [], []
    for row in range(len(batch.tokens)):
        for number in range(int(batch.documents[row].max()) + 1):
            here = batch.documents[row] == number
            tokens, labels = (torch.from_numpy(array[row][here])[None] for array in (batch.tokens, batch.labels))
            with torch.no_grad():
                result = chunk(tokens, torch.arange(tokens.shape[1])[None], None, labels=labels)
            packed.append(losses[row][torch.from_numpy(here)].tolist())
            alone.append((result[0] if isinstance(result, tuple) else result)[0].tolist())
    return packed, alone


@pytest.mark.parametrize("variant", VARIANTS)
def test_documents_are_as_if_alone(ranks, packed_config, variant):
    packed, alone = ranks.run(1, losses_alone, tree=packed_config(**VARIANTS[variant]))[0]
    assert len(packed) > 12 and max(map(len, packed)) > 20
    for ours, theirs in zip(packed, alone, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.fixture(scope="module")
def one_rank(ranks, tmp_path_factory):
    known = {}

    def reference(variant, tree):
        if variant not in known:
            train = {**tree["train"], "run_dir": str(tmp_path_factory.mktemp("alone")), "recompute": "none"}
            known[variant] = ranks.run(1, training.train, tree={**tree, "parallel": {}, "train": train}, until=STEPS)[0]
        return known[variant]

    return reference


SOME = (
    "TP2",
    "TP2+SP",
    "PP2",
    "PP4",
    "PP2 interleaved",
    "CP2",
    "DP2",
    "recompute full",
    "recompute selective",
    "TP2xPP2+SP, recompute full",
)


@pytest.mark.parametrize("layout", SOME)
@pytest.mark.parametrize("variant", ["decoder", "ALiBi encoder", "learned-position encoder"])
def test_layouts_equal_one_rank(ranks, packed_config, one_rank, variant, layout):
    recompute = layout.rpartition("recompute ")[2] if "recompute" in layout else "none"
    tree = packed_config(**VARIANTS[variant], **{"train.recompute": recompute})
    world_size, tree["parallel"] = LAYOUTS[layout]
    expected = one_rank(variant, tree)
    for result in ranks.run(world_size, training.train, tree=tree, until=STEPS):
        assert result.losses == pytest.approx(expected.losses, abs=1e-5)
        assert result.grad_norms == pytest.approx(expected.grad_norms, rel=1e-4)
        assert result.valid.loss == pytest.approx(expected.valid.loss, abs=1e-5)


def test_the_mask_makes_a_difference(ranks, packed_config, one_rank):
    tree = packed_config("without", **VARIANTS["decoder"])
    tree["data"]["document_attention"] = False
    without = ranks.run(1, training.train, tree=tree, until=STEPS)[0]
    with_mask = one_rank("decoder", packed_config(**VARIANTS["decoder"]))
    assert "within documents by a mask" in with_mask.log and "within documents" not in without.log
    assert without.losses != pytest.approx(with_mask.losses, abs=1e-3)


@pytest.mark.parametrize(("world_size", "overrides"), [(1, {}), (2, {"parallel.pp": 2, "parallel.vpp": 2, "train.recompute": "full"})])
def test_resume_is_exact(ranks, packed_config, tmp_path, world_size, overrides):
    whole = ranks.run(world_size, training.train, tree=packed_config("whole", **overrides), until=STEPS, save=True)[0]
    ranks.run(world_size, training.train, tree=packed_config("parted", **overrides), until=2, save=True)
    resumed = ranks.run(world_size, training.train, tree=packed_config("parted", **overrides), until=STEPS, save=True)[0]
    assert resumed.losses == whole.losses[2:] and resumed.grad_norms == whole.grad_norms[2:]
    ours, theirs = training.stored_tensors(tmp_path / "whole"), training.stored_tensors(tmp_path / "parted")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    shutil.rmtree(tmp_path / "whole")


def test_what_cannot_be_is_refused(packed_config):
    def error(**settings):
        tree = packed_config()
        for key, value in settings.items():
            section, _, leaf = key.partition("__")
            tree[section][leaf] = value
        with pytest.raises(ConfigError) as caught:
            config_from_dict(tree)
        return str(caught.value)

    assert "set data.sampling=packed" in error(data__sampling="windows")
    assert "model.transformer_impl=torch" in error(model__transformer_impl="transformer_engine")
    masking = {"data__masking": {"mlm_probability": 0.15}, "model__kind": "encoder"}
    assert "model.token_dropout = 0.12" in error(**masking, model__token_dropout=0.12)


def test_transformer_engine_is_not_chosen(monkeypatch):
    from types import SimpleNamespace

    from dnapretrain.config import ModelConfig
    from dnapretrain.model import paths

    model = ModelConfig(num_layers=1, hidden_size=64, num_attention_heads=4, ffn_hidden_size=96)
    monkeypatch.setattr(paths, "HAVE_TE", True)
    cuda = SimpleNamespace(is_cuda=True)
    assert paths.use_transformer_engine(model, cuda) and not paths.use_transformer_engine(model, cuda, "documents")
