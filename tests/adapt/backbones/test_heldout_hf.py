"""`evaluate`: the figures of a checkpoint and of its Hugging Face folder agree, for decoders and encoders of every kind of tokenizer."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from families import bpe_of, write_small
from reference import reference_logits, small_config, small_encoder, write_random
from safetensors.torch import load_file, save_file

from dnapretrain.adapt.backbones.heldout_hf import folder_config
from dnapretrain.cli import main
from dnapretrain.convert.hf import to_hf
from dnapretrain.data.sampling.samples import held_out_streams
from dnapretrain.data.tokens.tokenizers import build_tokenizer
from dnapretrain.errors import ConfigError

FOLDER = ["data.sequence_length=64", "data.lowercase_weight=0.5"]
NATIVE = [*FOLDER, "train.precision=fp32", "train.device=cpu"]


@pytest.fixture(scope="module")
def fasta(tmp_path_factory):
    rng = np.random.default_rng(8)
    bases = rng.choice(list("ACGT"), 3000, p=[0.4, 0.1, 0.2, 0.3])
    bases[[70, 71, 1500]] = "N"
    text = "".join(bases)
    path = tmp_path_factory.mktemp("genome") / "valid.fa"
    path.write_text(f">a\n{text[:2000]}{text[2000:2500].lower()}\n>b\n{text[2500:]}\n")
    path.with_suffix(".bed").write_text("a\t301\t905\na\t1900\t2100\n")
    return path


def model_of(name, folder):
    """A random checkpoint, and its Hugging Face folder."""
    if name in ("nt-v2", "dnabert2", "aido-dna"):
        write_small(folder / "native", name, folder)
    elif name == "encoder":
        write_random(folder / "native", small_encoder())
    else:
        bpe_of(None).bpe.save(folder / "merges.json")
        tokenizer = {"bpe": {"kind": "bpe", "file": str(folder / "merges.json")}, "kmer": {"kind": "kmer", "k": 3}}
        write_random(folder / "native", small_config(tokenizer.get(name, {"kind": name})))
    to_hf(folder / "native", folder / "hf")
    return folder / "native", folder / "hf"


def evaluated(capsys, *arguments):
    capsys.readouterr()
    assert main(["evaluate", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", ["nucleotide", "kmer", "generator", "bpe", "encoder", "nt-v2", "dnabert2", "aido-dna"])
def test_checkpoint_and_folder_agree(name, fasta, tmp_path, capsys):
    native, folder = model_of(name, tmp_path)
    by = ["--data", fasta, "--regions", f"genes={fasta.with_suffix('.bed')}"]
    [theirs] = evaluated(capsys, folder, *FOLDER, *by).values()
    found = evaluated(capsys, native, *NATIVE, *by)
    assert list(found) == ["data-valid"]  # 'valid' is a side of splits
    ours = found["data-valid"]
    assert {key: ours[key] for key in ("num_targets", "num_bases", "num_samples")} == {
        key: theirs[key] for key in ("num_targets", "num_bases", "num_samples")
    }
    for key in ("loss", "bits_per_base", "accuracy", "marginal_bits_per_base"):
        assert ours[key] == pytest.approx(theirs[key], abs=1e-5), key
    assert set(ours["regions"]) == {"class", "case", "gc", "assembly"} and set(ours["regions"]["class"]) == {"genes", "not annotated"}
    for grouping, classes in ours["regions"].items():
        assert set(classes) == set(theirs["regions"][grouping])
        for kind, values in classes.items():
            assert values == pytest.approx(theirs["regions"][grouping][kind], abs=1e-5), (grouping, kind)
        weight = sum(values["weight"] for values in classes.values())
        bits = sum(values["bits_per_base"] * values["weight"] for values in classes.values()) / weight
        assert bits == pytest.approx(ours["bits_per_base"], abs=1e-6)
    assert (ours["marginal_bits_per_base"] is None) == (name not in ("kmer", "generator", "nt-v2"))


@pytest.mark.parametrize("name", ["generator", "bpe"])
def test_bits_per_base_by_hand(name, fasta, tmp_path, capsys):
    """Target by target, from native tensors; the bases are the letters of the tokens."""
    native, folder = model_of(name, tmp_path)
    config = folder_config(folder, fasta, "held", FOLDER)
    tokenizer = build_tokenizer(config.tokenizer)
    [found] = evaluated(capsys, folder, *FOLDER, "--data", fasta, "--max-samples", 3).values()
    from dnapretrain.convert.native import open_weights, read_config
    from dnapretrain.data.shards.preprocess import preprocess

    preprocess([fasta], tmp_path / "held")
    config = folder_config(folder, tmp_path / "held", "held", FOLDER)
    stream = held_out_streams(config.data, tokenizer)["held"]
    reader = open_weights(native)
    tensors = {key: reader.read(key) for key in reader.model_names()}
    bits = bases = 0.0
    for number in (0, stream.num_samples // 3, 2 * stream.num_samples // 3):
        batch = stream.batch(np.array([number]))
        logits = reference_logits(read_config(native), tensors, torch.from_numpy(batch.tokens[0]))[:, : tokenizer.vocab_size]
        for row, label, weight in zip(torch.log_softmax(logits, -1), batch.labels[0], batch.loss_mask[0].tolist(), strict=True):
            if weight:
                bits -= weight * float(row[label]) / math.log(2)
                bases += weight * len(tokenizer.tokens[label])
    assert found["bits_per_base"] == pytest.approx(bits / bases, abs=1e-5)
    assert found["num_samples"] == 3


def test_recovery_and_count_models_beside_the_loss(fasta, tmp_path, capsys):
    native, folder = model_of("kmer", tmp_path)
    more = ["--data", fasta, "--baselines", "--fit-data", fasta, "--fit-bases", 1000, "--recovery", 4, "--recovery-bases", 9]
    [ours] = evaluated(capsys, native, *NATIVE, *more).values()
    [theirs] = evaluated(capsys, folder, *FOLDER, *more).values()
    assert ours["baselines"] == theirs["baselines"] and ours["recovery"] == theirs["recovery"]
    assert set(ours["baselines"]["bits_per_base"]) == {"markov", "tokens"} and ours["baselines"]["fitted_bases"] <= 1000
    assert ours["recovery"]["num_prompts"] + ours["recovery"]["left_out"] == 4
    assert len(ours["recovery"]["by_position"]) == 9
    assert main(["evaluate", str(folder), *FOLDER, *map(str, more), "--output", str(tmp_path / "out.json")]) == 0
    assert json.loads((tmp_path / "out.json").read_text()) == {"data-valid": theirs}
    capsys.readouterr()
    assert main(["evaluate", str(folder), *FOLDER, *map(str, more)]) == 0
    printed = capsys.readouterr().out
    assert f"{theirs['bits_per_base']:.4f} bits per base" in printed and "markov  0 " in printed and "recovered 0." in printed


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("kmer", [], "Give --data"),
        ("kmer", ["--data", "FASTA", "parallel.tp=2"], "'parallel.tp=2' means nothing to a Hugging Face folder"),
        ("kmer", ["--data", "FASTA", "--baselines"], "Give --fit-data"),
        ("kmer", ["--data", "FASTA", "--set", "other"], "no held-out set 'other'. Known sets: data-valid"),
        ("kmer", ["--data", "FASTA", "--max-samples", "0"], "--max-samples = 0 is below 1"),
        ("kmer", ["--data", "FASTA", "--ranks", "2"], "Remove --ranks"),
        ("kmer", ["--data", "FASTA", "--recovery", "2", "--prompt-bases", "0"], "prompt_bases = 0 is below 1"),
        ("kmer", ["--data", "FASTA", "--recovery", "2", "--recovery-bases", "500"], "no room for a prompt and 500 new bases"),
        ("encoder", ["--data", "FASTA", "--recovery", "2"], "it is an encoder"),
    ],
)
def test_what_cannot_be_evaluated_is_said(name, arguments, message, fasta, tmp_path, capsys):
    _, folder = model_of(name, tmp_path)
    assert main(["evaluate", str(folder), *(str(fasta) if part == "FASTA" else part for part in arguments)]) != 0
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["kmer", "nt-v2"])
def test_a_missing_tensor_is_not_started_at_random(name, fasta, tmp_path, capsys):
    _, folder = model_of(name, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    lost = next(item for item in sorted(tensors) if "layer" in item)
    del tensors[lost]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert main(["evaluate", str(folder), "--data", str(fasta)]) != 0
    assert f"no tensor for 1 weights of its model, the first {lost}" in capsys.readouterr().err


def test_weights_cut_short_are_one_line(fasta, tmp_path, capsys):
    _, folder = model_of("kmer", tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    assert main(["evaluate", str(folder), "--data", str(fasta)]) == 2
    error = capsys.readouterr().err
    assert f"{folder} does not load: " in error and error.count("\n") == 1


def test_a_published_tokenizer_reads_the_context_of_its_model(fasta, tmp_path):
    _, folder = model_of("dnabert2", tmp_path)
    config = folder_config(folder, fasta, "held")
    assert (config.data.sequence_length, config.data.masking.mlm_probability, config.tokenizer.add_eos) == (512, 0.15, True)
    with pytest.raises(ConfigError, match=r"'optim\.lr=1' means nothing"):
        folder_config(folder, fasta, "held", ["optim.lr=1"])
